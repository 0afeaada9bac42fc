"""A provider of its own that speaks OpenAI's dialect and Anthropic's, as a process: `upstream.py --port N --bill FILE`.

It counts as it likes (a prompt is its words, an answer its words) and writes down what each call costs before it
answers. It misbehaves on orders, given after a colon in the request's `user`, in the model's name or in `--orders`:
`fake:status=429;latency_ms=500`, `die=3` (after so many events), `usage=missing`, `words=40`, `cached=2`,
`pause_ms=20`, `clean-eof` (no [DONE] and no finish), `unstreamed` (a stream is answered as a whole), `zeros-first` (a
stream begins with figures of zero), `nested` (an error that is 400 deep), `leak` (the key in `retry-after`). An error
echoes the key that it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from aiohttp import web

WORDS = 8


class FakeUpstream:
    """The provider and its bill."""

    def __init__(self, bill: Path, orders: str = "") -> None:
        self.bill = bill
        self.orders = orders

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_get("/health", self.health)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        orders = orders_of(self.orders, body["model"], str(body.get("user", "")))
        status = int(orders.get("status", "200"))
        answer = Answer(body, orders)
        self._write_down(request, answer, billed=status < 300)
        await asyncio.sleep(int(orders.get("latency_ms", "0")) / 1000)
        if status >= 300:
            return _refusal(request, orders, status)
        if not body.get("stream") or "unstreamed" in orders:
            if "die" in orders:
                _cut(request)
            return web.json_response(answer.whole())
        return await self._stream(request, answer)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Answer as Anthropic does; orders come in `metadata.user_id`."""
        body = await request.json()
        orders = orders_of(self.orders, body["model"], str((body.get("metadata") or {}).get("user_id", "")))
        answer = Message(body, orders)
        status = int(orders.get("status", "200"))
        self._write_down(request, answer, billed=status < 400)
        if status >= 400:
            error = {"type": "overloaded_error", "message": f"refused {request.headers.get('x-api-key')}"}
            return web.json_response({"type": "error", "error": error}, status=status)
        if not body.get("stream"):
            return web.json_response(answer.whole_message())
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(answer.message_events()):
            if str(number) == orders.get("die"):
                _cut(request)
                return response
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        pause_seconds = int(answer.orders.get("pause_ms", "0")) / 1000
        for number, event in enumerate(answer.events()):
            if str(number) == answer.orders.get("die"):
                _cut(request)
                return response
            await response.write(f"data: {event}\n\n".encode())
            await asyncio.sleep(pause_seconds)
        if "clean-eof" not in answer.orders:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _write_down(self, request: web.Request, answer: Answer, *, billed: bool) -> None:
        line = {
            "request_id": request.headers.get("x-request-id"),
            "model": answer.body["model"],
            "prompt_tokens": answer.prompt_tokens if billed else 0,
            "completion_tokens": answer.completion_tokens if billed else 0,
            "key_end": (request.headers.get("authorization") or request.headers.get("x-api-key", ""))[-6:],
            "body": answer.body,
            "traceparent": request.headers.get("traceparent", ""),
        }
        opened = os.open(self.bill, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(opened, json.dumps(line).encode() + b"\n")
        finally:
            os.close(opened)


class Answer:
    """What the provider says to one request."""

    def __init__(self, body: dict[str, Any], orders: dict[str, str]) -> None:
        self.body = body
        self.orders = orders
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 10**9
        self.words = [f"word{number}" for number in range(min(int(orders.get("words", WORDS)), limit))]
        self.prompt_tokens = sum(words_in(message.get("content")) for message in body["messages"])
        self.completion_tokens = len(self.words) * int(body.get("n") or 1)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": int(self.orders.get("cached", "0"))},
        }

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-fake", "object": kind, "created": 1_750_000_000, "model": self.body["model"]}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": " ".join(self.words)}
        if "tools" in self.body:
            function = {"name": self.body["tools"][0]["function"]["name"], "arguments": "{}"}
            calls = [{"id": "call_1", "type": "function", "function": function}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        count = int(self.body.get("n") or 1)
        choices = [{"index": index, "message": message, "finish_reason": "stop"} for index in range(count)]
        answer = {**self.head("chat.completion"), "choices": choices}
        return answer if self.orders.get("usage") == "missing" else {**answer, "usage": self.usage()}

    def events(self) -> list[str]:
        head = self.head("chat.completion.chunk")
        choices: list[dict[str, Any]] = [{"index": 0, "delta": {"role": "assistant", "content": ""}}]
        choices += [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None} for word in self.words]
        if "clean-eof" not in self.orders:
            choices += [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        events = [json.dumps({**head, "choices": [choice], "usage": None}) for choice in choices]
        if "zeros-first" in self.orders:
            zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            events[0] = json.dumps({**head, "choices": [choices[0]], "usage": zeros})
        wanted = (self.body.get("stream_options") or {}).get("include_usage")
        if wanted and self.orders.get("usage") != "missing":
            events.append(json.dumps({**head, "choices": [], "usage": self.usage()}))
        return events


class Message(Answer):
    """The same answer in Anthropic's dialect."""

    def message_usage(self) -> dict[str, Any]:
        cached = int(self.orders.get("cached", "0"))
        return {
            "input_tokens": self.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.completion_tokens,
        }

    def whole_message(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": " ".join(self.words)}]
        if "tools" in self.body:
            name = self.body["tools"][0]["name"]
            content = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": {"city": "Bern"}}]
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": self.body["model"],
            "content": content,
            "stop_reason": "tool_use" if "tools" in self.body else "end_turn",
            "usage": self.message_usage(),
        }

    def message_events(self) -> list[dict[str, Any]]:
        whole = self.whole_message()
        start = {**whole, "content": [], "stop_reason": None, "usage": {**self.message_usage(), "output_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
        if "tools" in self.body:
            block = {**whole["content"][0], "input": {}}
            parts = [{"type": "input_json_delta", "partial_json": part} for part in ('{"city"', ': "Bern"}')]
        else:
            block = {"type": "text", "text": ""}
            parts = [{"type": "text_delta", "text": f"{word} "} for word in self.words]
        events.append({"type": "content_block_start", "index": 0, "content_block": block})
        events += [{"type": "content_block_delta", "index": 0, "delta": part} for part in parts]
        events.append({"type": "content_block_stop", "index": 0})
        usage = {"output_tokens": self.completion_tokens}
        events.append({"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"]}, "usage": usage})
        return [*events, {"type": "message_stop"}]


def words_in(content: Any) -> int:
    """Count the words of a message's content, a text or a list of parts."""
    if isinstance(content, str):
        return len(content.split())
    return sum(len(str(part.get("text", "")).split()) for part in content or [])


def orders_of(*texts: str) -> dict[str, str]:
    """Read `name:order=value;order` texts."""
    orders: dict[str, str] = {}
    for text in texts:
        for part in filter(None, text.partition(":")[2].split(";")):
            name, _, value = part.partition("=")
            orders[name] = value
    return orders


def _refusal(request: web.Request, orders: dict[str, str], status: int) -> web.Response:
    key = request.headers.get("authorization", "")
    error: dict[str, Any] = {"message": f"refused {key}", "type": "fake", "param": None, "code": "as_ordered"}
    if "nested" in orders:
        text = json.dumps({"error": error})[:-2] + ', "more": ' + "[" * 400 + "]" * 400 + "}}"
        return web.Response(text=text, status=status, content_type="application/json")
    after = key if "leak" in orders else "7"
    return web.json_response({"error": error}, status=status, headers={"retry-after": after})


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bill", type=Path, required=True)
    parser.add_argument("--orders", default="", help="orders for every call, such as :latency_ms=20")
    arguments = parser.parse_args()
    web.run_app(FakeUpstream(arguments.bill, arguments.orders).app(), host="127.0.0.1", port=arguments.port, print=None)


if __name__ == "__main__":
    main()
