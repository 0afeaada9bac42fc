"""A provider of its own that speaks OpenAI's dialect and Anthropic's, as a process: `upstream.py --port N --bill FILE`.

It counts as it likes (a prompt is its words, an answer its words) and writes down what each call costs before it
answers. It misbehaves on orders, given after a colon in the request's `user`, in the model's name or in `--orders`:
`fake:status=429;latency_ms=500`, `die=3` (after so many events), `fail=3` (an error after so many events),
`usage=missing`, `words=40`, `cached=2`, `pause_ms=20`, `clean-eof` (no [DONE] and no finish), `unstreamed` (a stream is
answered as a whole), `zeros-first` (a stream begins with figures of zero), `nested` (an error that is 400 deep), `leak`
(the key in `retry-after`). An error echoes the key that it was sent; with `echo=base64`, `hex`, `url` or `slashes` in
another form.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from aiohttp import web

from tests.fakes.upstream_answers import Answer, Embeddings, Message, Response

Error: TypeAlias = "Callable[[str], dict[str, Any]]"


class FakeUpstream:
    """The provider and its bill."""

    def __init__(self, bill: Path, orders: str = "") -> None:
        self.bill = bill
        self.orders = orders

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/v1/messages/count_tokens", self.count)
        app.router.add_post("/v1/responses", self.respond)
        app.router.add_post("/v1/embeddings", self.embed)
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
            return _refusal(request, orders, status, of=_anthropics_error)
        if not body.get("stream"):
            if "die" in orders:
                _cut(request)
            return web.json_response(answer.whole_message())
        return await self._named_stream(request, answer, answer.message_events(), _anthropics_error)

    async def count(self, request: web.Request) -> web.Response:
        """Count as an answer's usage does, at no cost."""
        body = await request.json()
        return web.json_response({"input_tokens": Message(body, {}).prompt_tokens})

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer as OpenAI's Responses do; orders come in `user`."""
        body = await request.json()
        orders = orders_of(self.orders, body["model"], str(body.get("user", "")))
        answer = Response(body, orders)
        status = int(orders.get("status", "200"))
        self._write_down(request, answer, billed=status < 300)
        if status >= 300:
            return _refusal(request, orders, status)
        if not body.get("stream"):
            if "die" in orders:
                _cut(request)
            return web.json_response(answer.whole_response())
        return await self._named_stream(request, answer, answer.response_events(), _responses_error)

    async def embed(self, request: web.Request) -> web.Response:
        """Answer as OpenAI's embeddings do: the same vector to each input, in either format."""
        body = await request.json()
        orders = orders_of(self.orders, body["model"], str(body.get("user", "")))
        answer = Embeddings(body, orders)
        status = int(orders.get("status", "200"))
        self._write_down(request, answer, billed=status < 300)
        if status >= 300:
            return _refusal(request, orders, status)
        if "die" in orders:
            _cut(request)
        return web.json_response(answer.vectors())

    async def _named_stream(
        self, request: web.Request, answer: Answer, events: Iterable[dict[str, Any]], error: Error
    ) -> web.StreamResponse:
        """Write events with names, which end in none of [DONE]."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(events):
            if str(number) == answer.orders.get("die"):
                _cut(request)
                return response
            failed = str(number) == answer.orders.get("fail")
            told = error(_echo(request, answer.orders)) if failed else event
            await response.write(f"event: {told['type']}\ndata: {_text_of(told, answer.orders)}\n\n".encode())
            if failed:
                break
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
            if str(number) == answer.orders.get("fail"):
                failure = _text_of(_openais_error(_echo(request, answer.orders)), answer.orders)
                await response.write(f"data: {failure}\n\n".encode())
                await response.write_eof()
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


def orders_of(*texts: str) -> dict[str, str]:
    """Read `name:order=value;order` texts."""
    orders: dict[str, str] = {}
    for text in texts:
        for part in filter(None, text.partition(":")[2].split(";")):
            name, _, value = part.partition("=")
            orders[name] = value
    return orders


def _echo(request: web.Request, orders: dict[str, str]) -> str:
    """Return an error's text, with the key that came."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
    forms: dict[str, Callable[[], str]] = {
        "base64": lambda: base64.b64encode(f"Bearer {key}".encode()).decode(),
        "hex": lambda: key.encode().hex(),
        "url": lambda: quote(key, safe=""),
    }
    return f"refused {forms.get(orders.get('echo', ''), lambda: key)()}"


def _text_of(document: dict[str, Any], orders: dict[str, str]) -> str:
    """Return JSON, with its slashes escaped as PHP does where that is ordered."""
    text = json.dumps(document)
    return text.replace("/", "\\/") if orders.get("echo") == "slashes" else text


def _openais_error(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "fake", "param": None, "code": "as_ordered"}}


def _anthropics_error(text: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "overloaded_error", "message": text}}


def _responses_error(text: str) -> dict[str, Any]:
    return {"type": "error", "code": "as_ordered", "message": text, "param": None, "sequence_number": 9}


def _refusal(request: web.Request, orders: dict[str, str], status: int, of: Error = _openais_error) -> web.Response:
    said = _echo(request, orders)
    document = of(said)
    text = _text_of(document, orders)
    if "nested" in orders:
        text = json.dumps({"error": document["error"]})[:-2] + ', "more": ' + "[" * 400 + "]" * 400 + "}}"
    headers = {"retry-after": said if "leak" in orders else "7"}
    if status in (301, 302, 307, 308):
        headers["location"] = f"/elsewhere?key={said}"
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


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
