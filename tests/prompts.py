"""Requests in every dialect with texts of every kind, and what of them a model reads: for proofs about token bounds."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from gateway_svc.dialects import Dialect

MESSAGE_TOKENS = 8  # OpenAI's cookbook counts 3 a message, 1 a name and 3 for the reply's beginning
TOOL_TOKENS = 16  # the same counts up to 12 a function, and 3 a property, which are less than its JSON's own letters
STRUCTURE = frozenset({"type", "role", "model", "id", "call_id", "tool_call_id", "tool_use_id", "stop", "detail"})
TEXTS: dict[str, Callable[[random.Random], str]] = {
    "english": lambda draw: "The quick brown fox jumps over the lazy dog. " * draw.randint(1, 12),
    "chinese": lambda draw: "".join(chr(draw.randint(0x4E00, 0x9FFF)) for _ in range(draw.randint(1, 200))),
    "hindi": lambda draw: "".join(chr(draw.randint(0x0900, 0x097F)) for _ in range(draw.randint(1, 200))),
    "emoji": lambda draw: "".join(chr(draw.randint(0x1F300, 0x1FAFF)) for _ in range(draw.randint(1, 120))),
    "families": lambda draw: "👩🏽‍👩🏻‍👧🏿‍👦🏼" * draw.randint(1, 20),
    "rare": lambda draw: "".join(chr(draw.randint(0x10000, 0x1FFFF)) for _ in range(draw.randint(1, 100))),
    "letters": lambda draw: "".join(chr(draw.randint(33, 1_000)) for _ in range(draw.randint(1, 300))),
    "controls": lambda draw: "".join(chr(draw.randint(1, 31)) for _ in range(draw.randint(1, 100))),
    "quotes": lambda draw: '"\\\n\t\u2028/<|endoftext|><|im_start|>' * draw.randint(1, 12),
    "base64": lambda draw: base64.b64encode(draw.randbytes(draw.randint(1, 400))).decode(),
    "hex": lambda draw: draw.randbytes(draw.randint(1, 300)).hex(),
    "digits": lambda draw: str(draw.getrandbits(draw.randint(1, 900))),
    "spaces": lambda draw: draw.choice(" \t\n\u3000") * draw.randint(1, 300),
    "json": lambda draw: json.dumps([{"id": n, "v": [n * 7 % 13, {"x": None}]} for n in range(draw.randint(1, 25))]),
    "one": lambda draw: draw.choice("a0 é语🧪"),
}


def text(draw: random.Random) -> str:
    """Draw a text of one kind, or of several."""
    return "".join(TEXTS[draw.choice(list(TEXTS))](draw) for _ in range(draw.choice((1, 1, 1, 3))))


def schema(draw: random.Random) -> dict[str, Any]:
    """Draw what a function takes."""
    properties: dict[str, Any] = {
        f"p{number}_{draw.choice('aé语')}": {"type": "string", "description": text(draw)} for number in range(3)
    }
    properties["unit"] = {"type": "string", "enum": [text(draw) for _ in range(draw.randint(1, 4))]}
    return {"type": "object", "properties": properties, "required": ["unit"]}


def chat(draw: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(draw)}]
    for number in range(draw.randint(1, 5)):
        parts = [{"type": "text", "text": text(draw)} for _ in range(draw.randint(1, 3))]
        messages.append({"role": "user", "content": draw.choice([text(draw), parts])})
        if draw.random() < 0.4:
            function = {"name": "f0", "arguments": json.dumps({"q": text(draw)}, ensure_ascii=draw.random() < 0.5)}
            call = {"id": f"call_{number}", "type": "function", "function": function}
            messages.append({"role": "assistant", "content": text(draw), "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text(draw)})
    document: dict[str, Any] = {"messages": messages, "max_tokens": 64}
    if draw.random() < 0.6:
        document["tools"] = [
            {"type": "function", "function": {"name": f"f{n}", "description": text(draw), "parameters": schema(draw)}}
            for n in range(draw.randint(1, 4))
        ]
    if draw.random() < 0.3:
        format_ = {"name": "answer", "description": text(draw), "schema": schema(draw)}
        document["response_format"] = {"type": "json_schema", "json_schema": format_}
    return document


def responses(draw: random.Random) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for number in range(draw.randint(1, 5)):
        parts = [{"type": "input_text", "text": text(draw)} for _ in range(draw.randint(1, 3))]
        items.append({"type": "message", "role": "user", "content": draw.choice([text(draw), parts])})
        if draw.random() < 0.4:
            arguments = json.dumps({"q": text(draw)}, ensure_ascii=draw.random() < 0.5)
            call = {"type": "function_call", "call_id": f"call_{number}", "name": "f0", "arguments": arguments}
            output = {"type": "function_call_output", "call_id": call["call_id"], "output": text(draw)}
            items += [call, output]
    given: Any = draw.choice([items, text(draw)])
    document: dict[str, Any] = {"input": given, "instructions": text(draw), "max_output_tokens": 64}
    if draw.random() < 0.6:
        document["tools"] = [
            {
                "type": "function",
                "name": f"f{n}",
                "description": text(draw),
                "parameters": schema(draw),
                "strict": False,
            }
            for n in range(draw.randint(1, 4))
        ]
    if draw.random() < 0.3:
        document["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema(draw)}}
    return document


def messages(draw: random.Random) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for number in range(draw.randint(1, 4)):
        blocks = [{"type": "text", "text": text(draw)} for _ in range(draw.randint(1, 3))]
        turns.append({"role": "user", "content": draw.choice([text(draw), blocks])})
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "f0", "input": {"q": text(draw)}}
        turns.append({"role": "assistant", "content": [{"type": "text", "text": "x" + text(draw)}, use]})
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": text(draw)}
        turns.append({"role": "user", "content": [result]})
    system = draw.choice([text(draw), [{"type": "text", "text": text(draw)}]])
    tools = [
        {"name": f"f{n}", "description": text(draw), "input_schema": schema(draw)} for n in range(draw.randint(1, 4))
    ]
    return {"messages": turns, "system": system, "tools": tools, "max_tokens": 64}


def embeddings(draw: random.Random) -> dict[str, Any]:
    return {"input": draw.choice([text(draw), [text(draw) for _ in range(draw.randint(1, 20))]])}


MAKERS: dict[Dialect, Callable[[random.Random], dict[str, Any]]] = {
    Dialect.CHAT: chat,
    Dialect.RESPONSES: responses,
    Dialect.MESSAGES: messages,
    Dialect.EMBEDDINGS: embeddings,
}


def request(dialect: Dialect, seed: int) -> bytes:
    """Return the body that a seed stands for, escaped as JSON or not."""
    draw = random.Random(f"{dialect}:{seed}")  # noqa: S311  # no secret
    document = {"model": "gpt-6.2-sol", **MAKERS[dialect](draw)}
    return json.dumps(document, ensure_ascii=draw.random() < 0.5).encode()


def texts_of(value: Any, name: str = "") -> Iterator[str]:
    """Give every text that a model reads of a document: what is said, what is called, and names in schemas."""
    match value:
        case str() if name not in STRUCTURE:
            yield value
        case dict():
            for key, inner in value.items():
                if name in {"properties", "input"}:
                    yield key
                yield from texts_of(inner, key)
        case list():
            for inner in value:
                yield from texts_of(inner, name)
        case _:
            pass


def overhead_of(document: dict[str, Any]) -> int:
    """Return what templates add: to each message or item, and to each tool."""
    said = document.get("messages") or document.get("input")
    count = len(said) if isinstance(said, list) else 1
    return MESSAGE_TOKENS * (count + 1) + TOOL_TOKENS * len(document.get("tools") or ())
