"""What the tests of the provider client share: scripts, pools, and both kinds of event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

import uvloop

from gateway_svc.providers.upstream import Limits, Room, Upstream
from tests.fakes.raw_provider import RawProvider, Visit

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


class Play(Protocol):
    """Run a scenario on a loop of its own."""

    def __call__(self, scenario: Coroutine[Any, Any, None]) -> None: ...


def play_on(loop: str, scenario: Coroutine[Any, Any, None]) -> None:
    """Run it to its end within 30 s; no task of it may be left."""

    async def alone() -> None:
        async with asyncio.timeout(30):
            await scenario
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(alone())


@asynccontextmanager
async def pooled(limits: Limits | None = None, **settings: Any) -> AsyncGenerator[Upstream]:
    """A pool that must be empty of connections, and of bytes, when it is closed."""
    room = settings.pop("room", None) or Room()
    upstream = Upstream(silence_seconds_max=5, public_only=False, limits=limits, room=room, **settings)
    try:
        yield upstream
        assert room.held_bytes == 0
    finally:
        await upstream.close()
        assert upstream.pool.counts == (0, 0, 0)


def saying(data: bytes, *, step: int | None = None) -> Any:
    """A script that answers each request with these bytes."""

    async def script(visit: Visit) -> None:
        await visit.say(data, step=step)

    return script


def closing(data: bytes) -> Any:
    """A script that says these bytes and closes the connection."""

    async def script(visit: Visit) -> None:
        await visit.say(data)
        visit.writer.close()

    return script


async def asked(upstream: Upstream, provider: RawProvider, body: bytes = b"{}") -> bytes:
    async with upstream.post(provider.url, {"x-a": "b"}, body) as answer:
        return await answer.body()
