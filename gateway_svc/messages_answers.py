"""Anthropic's answers in the shape of chat completions: whole ones and streams. Pure; requests are in `messages`."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from gateway_svc import sse
from gateway_svc.chat import Json, JsonObject

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
    """Translate a whole answer."""
    texts: list[str] = []
    calls: list[Json] = []
    content = message.get("content")
    for block in content if isinstance(content, list) else []:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "tool_use", "id": call_id, "name": name, "input": given}:
                function: JsonObject = {"name": name, "arguments": orjson.dumps(given).decode()}
                calls.append({"id": call_id, "type": "function", "function": function})
            case _:
                pass  # thinking is not part of an answer here
    said: JsonObject = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if calls:
        said["tool_calls"] = calls
    choice: JsonObject = {"index": 0, "message": said, "logprobs": None, "finish_reason": _finish(message)}
    head = _head(message, "chat.completion")
    answer: JsonObject = {**head, "choices": [choice]}
    if (usage := usage_of(message.get("usage"))) is not None:
        answer["usage"] = usage
    return answer


def usage_of(usage: Json) -> JsonObject | None:
    """Turn disjoint figures into inclusive ones; None when there are none."""
    if not isinstance(usage, dict) or not isinstance(usage.get("output_tokens"), int):
        return None
    fresh, read, written, output = (
        _count(usage, name)
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    )
    prompt = fresh + read + written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }


class StreamTranslator:
    """One stream, event by event."""

    def __init__(self) -> None:
        self._head: JsonObject = _head({}, "chat.completion.chunk")
        self._usage: JsonObject = {}
        self._calls = -1

    def take(self, event: bytes) -> Iterator[bytes]:
        """Give the chunks that one event becomes."""
        data = sse.data_of(event)
        if not data:
            return
        message: Json = orjson.loads(data)
        if isinstance(message, dict):
            yield from self._translate(message)

    def _translate(self, message: JsonObject) -> Iterator[bytes]:
        match message:
            case {"type": "message_start", "message": dict(start)}:
                self._head = _head(start, "chat.completion.chunk")
                self._see(start.get("usage"))
                yield self._chunk({"role": "assistant", "content": ""}, None)
            case {"type": "content_block_start", "content_block": {"type": "tool_use", "id": call_id, "name": name}}:
                self._calls += 1
                function: JsonObject = {"name": name, "arguments": ""}
                call: JsonObject = {"index": self._calls, "id": call_id, "type": "function", "function": function}
                yield self._chunk({"tool_calls": [call]}, None)
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}:
                yield self._chunk({"content": text}, None)
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": part}}:
                yield self._chunk({"tool_calls": [{"index": self._calls, "function": {"arguments": part}}]}, None)
            case {"type": "message_delta", "delta": dict(delta)}:
                self._see(message.get("usage"))
                yield self._chunk({}, _finish(delta))
                yield self._usage_chunk()
            case {"type": "message_stop"}:
                yield sse.DONE
            case {"type": "error", "error": dict(error)}:
                yield sse.event(orjson.dumps({"error": error}))
            case _:
                pass  # pings, block ends, thinking

    def _see(self, usage: Json) -> None:
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _usage_chunk(self) -> bytes:
        usage = usage_of(self._usage)
        return b"" if usage is None else sse.event(orjson.dumps({**self._head, "choices": [], "usage": usage}))

    def _chunk(self, delta: JsonObject, finish_reason: str | None) -> bytes:
        choice: JsonObject = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event(orjson.dumps({**self._head, "choices": [choice], "usage": None}))


def _head(message: JsonObject, kind: str) -> JsonObject:
    return {"id": message.get("id"), "object": kind, "created": CREATED, "model": message.get("model")}


def _finish(message: JsonObject) -> str | None:
    reason = message.get("stop_reason")
    return FINISHES.get(reason, "stop") if isinstance(reason, str) else None


def _count(usage: JsonObject, name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
