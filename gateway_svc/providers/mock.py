"""Models that need no provider: they count exactly, cost what they say, misbehave on demand and keep their own bill.

`x-mock: latency_ms=…;status=…;usage=missing|zero|double;events=…;die_after=…` orders the misbehaviour.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway_svc import sse
from gateway_svc.bounds import mock_prompt_tokens
from gateway_svc.chat import Json, JsonObject
from gateway_svc.providers import BrokenOff, Call
from mesh.errors import invalid

COMPLETION_TOKENS = 16
TOKEN = "tok "  # noqa: S105  # 4 bytes, so that our own count of a stream that broke off agrees with the bill
LATENCY_MS_MAX = 120_000
EVENTS_MAX = 1_000
DIGITS_MAX = 9
CREATED = 1_750_000_000
FIRST_ERROR, LAST_STATUS = 400, 599


@dataclass(frozen=True, slots=True)
class Orders:
    """How a mock model is to behave."""

    latency_ms: int = 0
    status: int = 200
    usage: str = ""
    events: int = COMPLETION_TOKENS
    die_after: int | None = None


def orders_of(header: str) -> Orders:
    """Read `x-mock`; InvalidArgument names the part that is wrong."""
    given: dict[str, str] = {}
    for part in filter(str.strip, header.split(";")):
        name, _, value = part.partition("=")
        given[name.strip()] = value.strip()
    if unknown := sorted(set(given) - {"latency_ms", "status", "usage", "events", "die_after"}):
        raise invalid("x-mock", f"knows no {unknown[0][:40]!r}")
    usage = given.get("usage", "")
    if usage not in ("", "missing", "zero", "double"):
        raise invalid("x-mock", "usage must be missing, zero or double")
    die_after = _number(given, "die_after", 0, EVENTS_MAX) if "die_after" in given else None
    return Orders(
        latency_ms=_number(given, "latency_ms", 0, LATENCY_MS_MAX),
        status=_number(given, "status", 200, LAST_STATUS),
        usage=usage,
        events=max(1, _number(given, "events", COMPLETION_TOKENS, EVENTS_MAX)),
        die_after=die_after,
    )


class Mock:
    """The mock models, and the file that is their bill."""

    needs_credential = False

    def __init__(self, bill_file: Path | None) -> None:
        self._bill_file = bill_file

    def check(self, call: Call) -> None:
        orders_of(call.mock)

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[MockExchange]:
        exchange = MockExchange(call, orders_of(call.mock))
        if self._bill_file is not None:
            _append(self._bill_file, exchange.bill())
        await asyncio.sleep(exchange.orders.latency_ms / 1000)
        if exchange.orders.die_after is not None and not call.chat.stream:
            raise BrokenOff("the mock model died")
        yield exchange


class MockExchange:
    """One answer of a mock model."""

    def __init__(self, call: Call, orders: Orders) -> None:
        self.orders = orders
        self.status = orders.status
        self.retry_after = ""
        self._call = call
        self._written = min(COMPLETION_TOKENS, call.output_tokens)
        self._events = min(orders.events, self._written)
        if orders.die_after is not None and call.chat.stream:
            self._written = sum(self._tokens_of_events()[: orders.die_after])

    def bill(self) -> bytes:
        """Return the line that says what this call costs, true whatever `usage` makes the answer say."""
        failed = self.status >= FIRST_ERROR
        times = 2 if self.orders.usage == "double" else 1
        line: JsonObject = {
            "request_id": self._call.request_id,
            "model": self._call.model.name,
            "prompt_tokens": 0 if failed else times * mock_prompt_tokens(self._call.chat),
            "completion_tokens": 0 if failed else times * self._written * self._call.chat.choices,
        }
        return orjson.dumps(line) + b"\n"

    async def body(self) -> bytes:
        if self.status >= FIRST_ERROR:
            error: JsonObject = {"message": "as ordered", "type": "mock_error", "param": None, "code": "mock"}
            return orjson.dumps({"error": error})
        message: JsonObject = {"role": "assistant", "content": (TOKEN * self._written).strip()}
        choices: list[Json] = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._finish_reason()}
            for index in range(self._call.chat.choices)
        ]
        answer: JsonObject = {**self._head("chat.completion"), "choices": choices}
        if (usage := self._usage()) is not None:
            answer["usage"] = usage
        return orjson.dumps(answer)

    async def chunks(self) -> AsyncIterator[bytes]:
        for number, tokens in enumerate(self._tokens_of_events()):
            if number == self.orders.die_after:
                raise BrokenOff("the mock model died")
            delta: JsonObject = (
                {"content": TOKEN * tokens} if number else {"role": "assistant", "content": TOKEN * tokens}
            )
            yield b"".join(self._chunk(index, delta, None) for index in range(self._call.chat.choices))
            await asyncio.sleep(0)
        if self.orders.die_after is not None and self.orders.die_after <= self._events:
            raise BrokenOff("the mock model died")
        last = b"".join(self._chunk(index, {}, self._finish_reason()) for index in range(self._call.chat.choices))
        if (usage := self._usage()) is not None:
            last += sse.event(orjson.dumps({**self._head("chat.completion.chunk"), "choices": [], "usage": usage}))
        yield last + sse.DONE

    def _chunk(self, index: int, delta: JsonObject, finish_reason: str | None) -> bytes:
        choice: JsonObject = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event(orjson.dumps({**self._head("chat.completion.chunk"), "choices": [choice], "usage": None}))

    def _head(self, kind: str) -> JsonObject:
        return {
            "id": f"chatcmpl-{self._call.request_id}",
            "object": kind,
            "created": CREATED,
            "model": self._call.model.name,
        }

    def _tokens_of_events(self) -> list[int]:
        """Spread all tokens over the events."""
        full = min(COMPLETION_TOKENS, self._call.output_tokens)
        each, more = divmod(full, self._events)
        return [each + (number < more) for number in range(self._events)]

    def _finish_reason(self) -> str:
        return "stop" if self._call.output_tokens >= COMPLETION_TOKENS else "length"

    def _usage(self) -> JsonObject | None:
        if self.orders.usage == "missing":
            return None
        times = {"zero": 0, "double": 2}.get(self.orders.usage, 1)
        prompt = times * mock_prompt_tokens(self._call.chat)
        completion = times * self._written * self._call.chat.choices
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _number(given: dict[str, str], name: str, default: int, maximum: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or len(text) > DIGITS_MAX or int(text) > maximum:
        raise invalid("x-mock", f"{name} must be a whole number up to {maximum}")
    return int(text)


def _append(path: Path, line: bytes) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(opened, line)  # one write: lines of several processes do not mix
    finally:
        os.close(opened)
