"""Chat completions as answers of Anthropic's Messages: whole ones and streams. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from gateway_svc import sse
from gateway_svc.dialects import Request
from gateway_svc.dialects.reading import Json, JsonObject, parts_of
from gateway_svc.translations.arguments import Arguments, Places
from gateway_svc.translations.provided import answer_of, event_of, index_of, object_of
from gateway_svc.usage import of_openai

FINISHES = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
CALLS_MAX = 1_024
WAITING_CHARACTERS_MAX = 4 * 1024 * 1024
ARGUMENTS_CHARACTERS_MAX = 16 * 1024 * 1024  # of all calls of an answer
ID_CHARACTERS_MAX = 40
FOREIGN_ID = re.compile(r"[^A-Za-z0-9_-]")
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def message_of(body: JsonObject, request: Request) -> JsonObject:
    """Translate a whole answer; ValueError for what is none."""
    match answer_of(body).get("choices"):
        case [{"message": dict(said)} as choice, *_]:
            pass
        case _:
            raise ValueError("the answer has no choice")
    _check_content(said)
    content: list[Json] = []
    if (thought := _thought(said)) and _shows_thinking(request):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    content.extend({"type": "text", "text": text} for name in ("content", "refusal") if (text := _text(said, name)))
    calls = parts_of(said.get("tool_calls"))
    content.extend(_tool_use(call, _call_id(body, index)) for index, call in enumerate(calls))
    stop = _stop_sequence(choice, request)
    head = _head(body, request)
    return {
        **head,
        "content": content,
        "stop_reason": _stop_reason(choice, stop, refused=bool(said.get("refusal")), called=bool(calls)),
        "stop_sequence": stop,
        "usage": {"input_tokens": 0, "output_tokens": 0} | usage_of(body.get("usage")),
    }


def usage_of(usage: Json) -> JsonObject:
    """Turn inclusive figures into disjoint ones; clients fail without any, so what is missing is told as none."""
    used = of_openai(usage)
    if used is None:
        return {"output_tokens": 0}
    figures: JsonObject = {
        "input_tokens": used.input_tokens,
        "cache_creation_input_tokens": used.cache_write_tokens,
        "cache_read_input_tokens": used.cached_input_tokens,
        "output_tokens": used.output_tokens + used.reasoning_tokens,
    }
    if used.reasoning_tokens:
        figures["output_tokens_details"] = {"thinking_tokens": used.reasoning_tokens}
    return figures


@dataclass(slots=True)
class _Call:
    """One call of a tool."""

    call_id: str
    name: str
    arguments: Arguments = field(default_factory=Arguments)


class MessagesStream:
    """One stream; blocks come one after the other, so a call that begins amid another waits for that one's end."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._shows_thinking = _shows_thinking(request)
        self._started = False
        self._id = ""
        self._block = -1
        self._open = ""  # the kind of the block that is open: text, thinking, tool_use, or none
        self._calls: list[_Call] = []
        self._places = Places()
        self._current = -1  # of the calls, the last one that has a block
        self._waiting_characters = 0
        self._arguments_characters = 0
        self._choice: JsonObject = {}  # how it ended
        self._refused = False
        self._usage: Json = None

    def take(self, events: bytes) -> bytes:
        return b"".join(told for event in sse.events_of(events) for told in self._take(event))

    def end(self, kept: Sequence[bytes]) -> list[bytes]:
        last = [told for event in kept for told in self._take(event)]
        closing = [*self._start({}), *self._next_calls(final=True), *self._close()]
        stop = _stop_sequence(self._choice, self._request)
        reason = _stop_reason(self._choice, stop, refused=self._refused, called=bool(self._calls))
        delta: JsonObject = {"stop_reason": reason, "stop_sequence": stop}
        told = named("message_delta", {"delta": delta, "usage": usage_of(self._usage)})
        return [*last, *closing, told, STOP]

    def _take(self, event: bytes) -> list[bytes]:
        data = event[6:] if event.startswith(b"data: ") and b"\n" not in event else sse.data_of(event)
        if not data:
            return []
        chunk = event_of(data)
        match chunk:
            case {"choices": [dict(choice), *_]}:
                self._usage = chunk.get("usage") or self._usage
                told = self._start(chunk)
                if isinstance(delta := choice.get("delta"), dict):
                    told += self._delta(delta)
                if choice.get("finish_reason") is not None:
                    self._choice = choice
                return told
            case {"choices": []}:
                self._usage = chunk.get("usage") or self._usage
                return []
            case _:
                raise ValueError("the event is no chunk")

    def _start(self, chunk: JsonObject) -> list[bytes]:
        if self._started:
            return []
        self._started = True
        head = _head(chunk, self._request)
        self._id = str(head["id"])
        usage: JsonObject = {"input_tokens": 0, "output_tokens": 0}  # the provider tells them at the end
        message: JsonObject = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [named("message_start", {"message": message})]

    def _delta(self, delta: JsonObject) -> list[bytes]:
        _check_content(delta)
        translated: list[bytes] = []
        if self._shows_thinking and (thought := _thought(delta)):
            translated += self._write("thinking", "thinking_delta", "thinking", thought)
        if text := _text(delta, "content"):
            translated += self._write("text", "text_delta", "text", text)
        if refusal := _text(delta, "refusal"):
            self._refused = True
            translated += self._write("text", "text_delta", "text", refusal)
        for call in parts_of(delta.get("tool_calls")):
            if isinstance(call, dict):
                translated += self._call(call)
        return translated

    def _write(self, block: str, kind: str, member_name: str, text: str) -> list[bytes]:
        opened: list[bytes] = []
        if self._open != block:
            empty: JsonObject = {"type": block, member_name: ""}
            if block == "thinking":
                empty["signature"] = ""
            opened = [*self._next_calls(final=True), *self._close(), self._begin(block, empty)]
        return [*opened, self._block_delta(kind, member_name, text)]

    def _call(self, delta: JsonObject) -> list[bytes]:
        function = _function(delta)
        index = index_of(delta)
        call_id = _text(delta, "id")
        place = self._places.of(index, call_id)
        if place is None:
            if len(self._calls) >= CALLS_MAX:
                raise ValueError("the stream has too many calls")
            place = len(self._calls)
            call_id = call_id or _call_id({"id": self._id}, place)
            self._places.add(place, index, call_id)
            self._calls.append(_Call(call_id, _text(function, "name")))
        arguments = _text(function, "arguments")
        self._arguments_characters += len(arguments)
        if self._arguments_characters > ARGUMENTS_CHARACTERS_MAX:
            raise ValueError("the stream is longer than any answer")
        self._calls[place].arguments.add(arguments)
        if place == self._current and self._open == "tool_use":
            return [self._block_delta("input_json_delta", "partial_json", arguments)] if arguments else []
        if place <= self._current:
            if arguments.strip():
                raise ValueError("the stream adds to a call that was complete")
            return []
        self._waiting_characters += len(arguments)
        if self._waiting_characters > WAITING_CHARACTERS_MAX:
            raise ValueError("the stream's calls wait for too long")
        return self._next_calls(final=False)

    def _next_calls(self, *, final: bool) -> list[bytes]:
        """Give the calls that wait their blocks, as far as the one that is open is complete."""
        translated: list[bytes] = []
        while self._current + 1 < len(self._calls):
            if self._open == "tool_use" and not final and not self._calls[self._current].arguments.complete():
                break
            self._current += 1
            call = self._calls[self._current]
            opening: JsonObject = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
            translated += [*self._close(), self._begin("tool_use", opening)]
            if waited := call.arguments.text():
                translated.append(self._block_delta("input_json_delta", "partial_json", waited))
        return translated

    def _begin(self, block: str, members: JsonObject) -> bytes:
        self._block += 1
        self._open = block
        return named("content_block_start", {"index": self._block, "content_block": members})

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [named("content_block_stop", {"index": self._block})]

    def _block_delta(self, kind: str, member_name: str, text: str) -> bytes:
        head = f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._block},"delta":'
        return f'{head}{{"type":"{kind}","{member_name}":'.encode() + orjson.dumps(text) + b"}}\n\n"


def named(kind: str, members: JsonObject) -> bytes:
    """Build an event of Anthropic's: clients skip one whose name is not told twice."""
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def _head(body: JsonObject, request: Request) -> JsonObject:
    model = body.get("model")
    told = FOREIGN_ID.sub("", _text(body, "id").removeprefix("chatcmpl-"))[:ID_CHARACTERS_MAX] or "0"
    name = model if isinstance(model, str) and model else request.model
    return {"id": f"msg_{told}", "type": "message", "role": "assistant", "model": name}


def _call_id(body: JsonObject, index: int) -> str:
    return f"toolu_{FOREIGN_ID.sub('', _text(body, 'id'))[:ID_CHARACTERS_MAX]}_{index}"


def _shows_thinking(request: Request) -> bool:
    """Return whether the client asked to see thinking: one that did not may take the first block for the answer."""
    match request.document.get("thinking"):
        case {"type": "enabled" | "adaptive", **rest}:
            return rest.get("display") != "omitted"
        case _:
            return False


def _thought(said: JsonObject) -> str:
    return _text(said, "reasoning_content") or _text(said, "reasoning")


def _text(owner: JsonObject, name: str) -> str:
    value = owner.get(name)
    return value if isinstance(value, str) else ""


def _check_content(said: JsonObject) -> None:
    match said.get("content"):
        case str() | None:
            pass
        case _:
            raise ValueError("the answer's content is no text")


def _function(call: Json) -> JsonObject:
    match call:
        case {"function": dict(function)}:
            return function
        case _:
            return {}


def _tool_use(call: Json, call_id: str) -> JsonObject:
    function = _function(call)
    told = _text(call, "id") if isinstance(call, dict) else ""
    arguments = _arguments(_text(function, "arguments"))
    return {"type": "tool_use", "id": told or call_id, "name": _text(function, "name"), "input": arguments}


def _arguments(text: str) -> Json:
    """Return a call's input; what is no object is kept under a key, as Anthropic advises for broken arguments."""
    if not text.strip():
        return {}
    told = object_of(text)
    return {"INVALID_JSON": text} if told is None else told


def _stop_sequence(choice: JsonObject, request: Request) -> str | None:
    """Return which of the client's texts ended the answer; compatible servers tell, OpenAI does not."""
    told = choice.get("stop_reason")
    return told if isinstance(told, str) and told in parts_of(request.document.get("stop_sequences")) else None


def _stop_reason(choice: JsonObject, stop: str | None, *, refused: bool, called: bool) -> str:
    finish = choice.get("finish_reason")
    if stop is not None:
        return "stop_sequence"
    if refused:
        return "refusal"
    reason = FINISHES.get(finish, "end_turn") if isinstance(finish, str) else "end_turn"
    return "tool_use" if called and reason == "end_turn" else reason  # some servers say that it just stopped
