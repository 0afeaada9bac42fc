"""Anthropic's answers in the shape of chat completions: whole ones and streams. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.meters.messages import usage_of
from gateway_svc.translations.provided import answer_of, event_of, index_of

CALLS_MAX = 1_024
TOLD_CHARACTERS_MAX = 256
CREATED = 1_750_000_000  # answers of this dialect carry no time; clients demand a number
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def completion_of(message: JsonObject) -> JsonObject:
    """Translate a whole answer; ValueError for what is none."""
    match answer_of(message).get("content"):
        case list(content):
            pass
        case _:
            raise ValueError("the answer has no content")
    texts = [text for block in content if (text := _text_of(block, "text")) is not None]
    thoughts = [thought for block in content if (thought := _text_of(block, "thinking")) is not None]
    calls = [call for block in content if (call := _call_of(block)) is not None]
    said: JsonObject = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if any(thoughts):
        said["reasoning_content"] = "".join(thoughts)
    if calls:
        said["tool_calls"] = [*calls]
    choice: JsonObject = {"index": 0, "message": said, "logprobs": None, "finish_reason": _finish(message) or "stop"}
    answer: JsonObject = {**_head(message, "chat.completion"), "choices": [choice]}
    if (usage := inclusive(message)) is not None:
        answer["usage"] = usage
    return answer


def inclusive(message: JsonObject) -> JsonObject | None:
    """Turn a message's disjoint figures into inclusive ones; None when there are none."""
    used = usage_of(message)
    if used is None:
        return None
    prompt = used.input_tokens + used.cached_input_tokens + used.cache_write_tokens
    completion = used.output_tokens + used.reasoning_tokens
    usage: JsonObject = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": used.cached_input_tokens,
            "cache_write_tokens": used.cache_write_tokens,
        },
    }
    if used.reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": used.reasoning_tokens}
    return usage


class ChatStream:
    """One stream; the blocks of tools are its calls, in the order in which they begin."""

    def __init__(self, *, usage_wanted: bool) -> None:
        self._nulls: JsonObject = {"usage": None} if usage_wanted else {}
        self._usage: JsonObject = {}
        self._calls: dict[int | str | None, int] = {}  # from a block's index to its call's
        self._empty: set[int | str | None] = set()  # of those blocks, the ones whose call has no arguments yet
        self._finish: str | None = None
        self._begin({})

    def take(self, events: bytes) -> bytes:
        return b"".join(self._take(event) for event in sse.events_of(events))

    def end(self, kept: Sequence[bytes]) -> list[bytes]:
        last = [translated for event in kept if (translated := self._take(event))]
        last.extend(self._arguments(index, "{}") for index in [index for index in self._calls if index in self._empty])
        last.append(self._chunk({}, self._finish or "stop"))
        usage = inclusive({"usage": self._usage})
        if usage is not None:
            last.append(sse.event(orjson.dumps({**self._head, "choices": [], "usage": usage})))
        return last

    def _take(self, event: bytes) -> bytes:
        data = event.rpartition(b"\ndata: ")[2] if event.count(b"\n") == 1 else sse.data_of(event)
        if not data:
            return b""
        message = event_of(data)
        match message:
            case {"type": "content_block_delta", "delta": dict(delta)}:
                return self._delta(index_of(message), delta)
            case {"type": "content_block_start", "content_block": dict(block)}:
                return self._block(index_of(message), block)
            case {"type": "message_start", "message": dict(start)}:
                self._begin(start)
                self._see(start.get("usage"))
                return self._chunk({"role": "assistant", "content": ""}, None)
            case {"type": "message_delta"}:
                self._see(message.get("usage"), final=True)
                delta = message.get("delta")
                self._finish = (_finish(delta) if isinstance(delta, dict) else None) or self._finish
            case {"type": "content_block_stop"} if (index := index_of(message)) in self._empty:
                return self._arguments(index, "{}")  # Messages has none for an empty input; clients of chat read JSON
            case {"type": str()}:
                pass  # pings, other ends of blocks, and what may come to be
            case _:
                raise ValueError("the event is not of Messages")
        return b""

    def _begin(self, start: JsonObject) -> None:
        """Make what every chunk begins with, once."""
        self._head = _head(start, "chat.completion.chunk")
        self._opening = orjson.dumps(self._head)[:-1] + b',"choices":[{"index":0,"delta":{"'
        usage = b',"usage":null}\n\n' if self._nulls else b"}\n\n"
        self._closing = b'},"logprobs":null,"finish_reason":null}]' + usage

    def _delta(self, index: int | str | None, delta: JsonObject) -> bytes:
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                return self._text(b"content", text)
            case {"type": "thinking_delta", "thinking": str(text)}:
                return self._text(b"reasoning_content", text)
            case {"type": "input_json_delta", "partial_json": str(part)} if index in self._calls:
                if not part:
                    return b""
                return self._arguments(index, part)
            case _:
                return b""  # signatures; arguments of tools that were not asked for

    def _arguments(self, index: int | str | None, part: str) -> bytes:
        self._empty.discard(index)
        call: JsonObject = {"index": self._calls[index], "function": {"arguments": part}}
        return self._chunk({"tool_calls": [call]}, None)

    def _block(self, index: int | str | None, block: JsonObject) -> bytes:
        match block:
            case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                if len(self._calls) >= CALLS_MAX:
                    raise ValueError("the stream has too many calls")
                self._calls[index] = len(self._calls)
                given = block.get("input")
                if not given:
                    self._empty.add(index)
                function: JsonObject = {"name": name, "arguments": orjson.dumps(given).decode() if given else ""}
                call: JsonObject = {"index": self._calls[index], "id": call_id, "type": "function"}
                return self._chunk({"tool_calls": [{**call, "function": function}]}, None)
            case {"type": "tool_use"}:
                raise ValueError("a call has no id or no name")
            case {"type": "text", "text": str(text)} if text:
                return self._text(b"content", text)
            case {"type": "thinking", "thinking": str(text)} if text:
                return self._text(b"reasoning_content", text)
            case _:
                return b""

    def _text(self, member: bytes, text: str) -> bytes:
        return b"data: " + self._opening + member + b'":' + orjson.dumps(text) + self._closing

    def _see(self, usage: Json, *, final: bool = False) -> None:
        """Take in the newest figures; the output of message_start is from before the answer, and tells nothing."""
        if isinstance(usage, dict):
            known = {name: value for name, value in usage.items() if value is not None}
            self._usage |= known if final else {**known, "output_tokens": None}

    def _chunk(self, delta: JsonObject, finish_reason: str | None) -> bytes:
        choice: JsonObject = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event(orjson.dumps({**self._head, "choices": [choice], **self._nulls}))


def _text_of(block: Json, kind: str) -> str | None:
    match block:
        case {"type": found, **rest} if found == kind and isinstance(text := rest.get(kind), str):
            return text
        case _:
            return None  # thinking that nobody can read; blocks of tools that were not asked for


def _call_of(block: Json) -> JsonObject | None:
    match block:
        case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": given}:
            function: JsonObject = {"name": name, "arguments": orjson.dumps(given).decode()}
            return {"id": call_id, "type": "function", "function": function}
        case {"type": "tool_use"}:
            raise ValueError("a call has no id, no name or no input")
        case _:
            return None


def _head(message: JsonObject, kind: str) -> JsonObject:
    return {"id": _told(message, "id"), "object": kind, "created": CREATED, "model": _told(message, "model")}


def _told(message: JsonObject, name: str) -> str:
    """Return a text that every chunk repeats, which is why it has a bound."""
    value = message.get(name)
    return value[:TOLD_CHARACTERS_MAX] if isinstance(value, str) else ""


def _finish(message: JsonObject) -> str | None:
    reason = message.get("stop_reason")
    return FINISHES.get(reason, "stop") if isinstance(reason, str) else None
