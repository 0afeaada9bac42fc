"""Models that need no provider: they count exactly, cost what they say, misbehave on demand and keep their own bill.

`x-mock: latency_ms=…;status=…;usage=…;events=…;event_ms=…;die_after=…;tokens=…;cached=…;reasoning=…;refuse=1` orders
the misbehaviour; the bill stays true whatever `usage` makes the answer say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import orjson

from gateway_svc import sse
from gateway_svc.bounds import mock_prompt_tokens
from gateway_svc.credentials import Credential
from gateway_svc.dialects import Dialect
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.dialects.registry import size_of
from gateway_svc.providers import BrokenOff, Call, NotSent
from gateway_svc.providers.mock_orders import Orders, orders_of
from mesh.clock import SystemClock

TOKEN = "tok "  # noqa: S105  # 4 bytes, so that our own count of a stream that broke off agrees with the bill
CREATED = 1_750_000_000
FIRST_ERROR = 400
EMBEDDING = (0.25, -0.5, 0.125, 1.0)
EMBEDDING_BASE64 = "AACAPgAAAL8AAAA+AACAPw=="  # the same, as 32-bit floats


class Mock:
    """The mock models, and the file that is their bill."""

    needs_credential = False

    def __init__(self, bill_file: Path | None) -> None:
        self._bill_file = bill_file
        self._clock = SystemClock()

    def speaks(self, credential: Credential | None) -> frozenset[Dialect]:
        return frozenset({Dialect.CHAT, Dialect.EMBEDDINGS})

    def check(self, order: str) -> None:
        orders_of(order)

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[MockExchange]:
        orders = orders_of(call.mock)
        if orders.refuse:
            raise NotSent("the mock model takes no call")
        embeds = call.request.dialect is Dialect.EMBEDDINGS
        exchange = MockEmbeddings(call, orders) if embeds else MockExchange(call, orders)
        if self._bill_file is not None:
            _append(self._bill_file, exchange.bill(self._clock.now()))
        await asyncio.sleep(orders.latency_ms / 1000)
        if orders.die_after is not None and not call.request.stream:
            raise BrokenOff("the mock model died")
        yield exchange

    async def count(self, call: Call) -> int | None:
        """Count as the answer's usage does."""
        return mock_prompt_tokens(size_of(call.request))


class MockExchange:
    """One answer of a mock model."""

    def __init__(self, call: Call, orders: Orders) -> None:
        self.orders = orders
        self.status = orders.status
        self.retry_after = ""
        self._call = call
        self._prompt = mock_prompt_tokens(size_of(call.request))
        self._wanted = orders.tokens
        self._written = min(self._wanted, call.output_tokens)
        self._events = min(orders.events or self._written, self._written)
        if orders.die_after is not None and call.request.stream:
            self._written = sum(self._tokens_of_events()[: orders.die_after])

    def bill(self, time: datetime) -> bytes:
        """Return the line that says when this call came and what it costs, whatever `usage` makes the answer say."""
        failed = self.status >= FIRST_ERROR
        times = 2 if self.orders.usage == "double" else 1
        line: JsonObject = {
            "time": time.isoformat(),
            "request_id": self._call.request_id,
            "model": self._call.model,
            "prompt_tokens": 0 if failed else times * self._prompt,
            "completion_tokens": 0 if failed else times * self._written * self._call.request.choices,
        }
        return orjson.dumps(line) + b"\n"

    async def body(self) -> bytes:
        if self.status >= FIRST_ERROR:
            error: JsonObject = {"message": "as ordered", "type": "mock_error", "param": None, "code": "mock"}
            return orjson.dumps({"error": error})
        return orjson.dumps(self.answer())

    def answer(self) -> JsonObject:
        """Return the whole answer."""
        message: JsonObject = {"role": "assistant", "content": (TOKEN * self._written).strip()}
        choices: list[Json] = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._finish_reason()}
            for index in range(self._call.request.choices)
        ]
        answer: JsonObject = {**self._head("chat.completion"), "choices": choices}
        if (usage := self.usage(self._written * self._call.request.choices)) is not None:
            answer["usage"] = usage
        return answer

    async def chunks(self) -> AsyncIterator[bytes]:
        choices = range(self._call.request.choices)
        for number, tokens in enumerate(self._tokens_of_events()):
            if number == self.orders.die_after:
                raise BrokenOff("the mock model died")
            delta: JsonObject = (
                {"content": TOKEN * tokens} if number else {"role": "assistant", "content": TOKEN * tokens}
            )
            yield b"".join(self._chunk(index, delta, None) for index in choices)
            await asyncio.sleep(self.orders.event_ms / 1000)
        if self.orders.die_after is not None and self.orders.die_after <= self._events:
            raise BrokenOff("the mock model died")
        last = b"".join(self._chunk(index, {}, self._finish_reason()) for index in choices)
        if (usage := self.usage(self._written * self._call.request.choices)) is not None:
            last += sse.event(orjson.dumps({**self._head("chat.completion.chunk"), "choices": [], "usage": usage}))
        yield last + sse.DONE

    def usage(self, completion: int) -> JsonObject | None:
        """Return the figures, in the shape that was ordered."""
        orders = self.orders
        prompt = self._prompt
        match orders.usage:
            case "missing":
                return None
            case "zero":
                prompt = completion = 0
            case "double":
                prompt, completion = 2 * prompt, 2 * completion
            case "negative":
                prompt, completion = -1 - prompt, -1 - completion
            case "text":
                return {"prompt_tokens": "many", "completion_tokens": "few", "total_tokens": None}
            case _:
                pass
        usage: JsonObject = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if orders.cached:
            usage["prompt_tokens_details"] = {"cached_tokens": min(orders.cached, max(prompt, 0))}
        if orders.reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": min(orders.reasoning, max(completion, 0))}
        return usage

    def _chunk(self, index: int, delta: JsonObject, finish_reason: str | None) -> bytes:
        choice: JsonObject = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event(orjson.dumps({**self._head("chat.completion.chunk"), "choices": [choice], "usage": None}))

    def _head(self, kind: str) -> JsonObject:
        return {
            "id": f"chatcmpl-{self._call.request_id}",
            "object": kind,
            "created": CREATED,
            "model": self._call.model,
        }

    def _tokens_of_events(self) -> list[int]:
        """Spread all tokens over the events."""
        full = min(self._wanted, self._call.output_tokens)
        each, more = divmod(full, self._events)
        return [each + (number < more) for number in range(self._events)]

    def _finish_reason(self) -> str:
        return "stop" if self._call.output_tokens >= self._wanted else "length"


class MockEmbeddings(MockExchange):
    """The same vector for each input; no token comes out."""

    def __init__(self, call: Call, orders: Orders) -> None:
        super().__init__(call, orders)
        self._written = 0

    def answer(self) -> JsonObject:
        document = self._call.request.document
        given = document.get("input")
        inputs = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
        vector: Json = EMBEDDING_BASE64 if document.get("encoding_format") == "base64" else list(EMBEDDING)
        data: list[Json] = [{"object": "embedding", "index": index, "embedding": vector} for index in range(inputs)]
        answer: JsonObject = {"object": "list", "data": data, "model": self._call.model}
        if (usage := self.usage(0)) is not None:
            answer["usage"] = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
        return answer


def _append(path: Path, line: bytes) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(opened, line)  # one write: lines of several processes do not mix
    finally:
        os.close(opened)
