"""Take one of two gateways away under a load of streams, and load both past their limits: who was let in is served."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.journeys.completion_load import pages, platform_of
from tests.journeys.running import Mesh, Tenant

BOUGHT_MICROS = 10**10
CALLERS = 24
IN_FLIGHT_MAX = 40  # of each process; three quarters of them for one organization
SEATS = IN_FLIGHT_MAX - IN_FLIGHT_MAX // 4
EVENTS = 16
AT_ONCE_MS = 50
FILL_SECONDS_MAX = 4  # the first stream ends after five
GONE_SECONDS_MAX = 25
BODY: dict[str, Any] = {
    "model": "mock-model",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": EVENTS,
    "stream": True,
    "stream_options": {"include_usage": True},
}
PRICE_MICROS = 2 * 100 + EVENTS * 200

pytestmark = [pytest.mark.journey, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of its own with two gateways that take little at once."""
    folder = tmp_path_factory.mktemp("pair")
    extra = {"MANDATE_MOCK_BILL_FILE": str(folder / "bill.jsonl"), "MANDATE_GATEWAY_IN_FLIGHT_MAX": str(IN_FLIGHT_MAX)}
    built = Mesh(folder / "home", extra=extra)
    with built.up("--replicas", "gateway=2"):
        yield built


@dataclass
class Streams:
    """Callers of streams that never cease; half of them on a new connection every time."""

    mesh: Mesh
    tenant: Tenant
    whole: list[dict[str, Any]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    instances: list[tuple[float, str]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Ask all the time inside the block; at its end every caller hears its stream to the end."""
        stop = asyncio.Event()
        kept = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        new = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        async with kept, new, asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call_until(stop, (kept, new)[number % 2], 20 + 10 * (number % 10)))
            try:
                yield
            finally:
                stop.set()

    async def _call_until(self, stop: asyncio.Event, session: aiohttp.ClientSession, event_ms: int) -> None:
        while not stop.is_set():
            try:
                await self._call(session, event_ms)
            except (aiohttp.ClientError, OSError) as error:
                self.lost[type(error).__name__] += 1

    async def _call(self, session: aiohttp.ClientSession, event_ms: int) -> None:
        headers = {"authorization": f"Bearer {self.tenant.api_key}", "x-mock": f"event_ms={event_ms}"}
        began = time.monotonic()
        async with session.post(f"{self.mesh.gateway_url}/v1/chat/completions", json=BODY, headers=headers) as response:
            text = await response.text()
        self.instances.append((began, response.headers["x-mandate-instance"]))
        told = platform_of(text, streamed=True) if response.status == 200 else None
        if told is None:
            self.lost[f"{response.status} {text[-100:]}"] += 1
        else:
            self.whole.append(told)


async def test_a_gateway_that_is_told_to_stop_under_load_loses_no_request_and_cuts_no_stream(
    pair: Mesh, record_property: Callable[[str, object], None]
) -> None:
    tenant = await asyncio.to_thread(pair.tenant, BOUGHT_MICROS)
    streams = Streams(pair, tenant)
    async with streams.running():
        await asyncio.sleep(2)
        pid = await asyncio.to_thread(pair.pid, "gateway", 0)
        told_at = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(GONE_SECONDS_MAX):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC240, ASYNC110  # the kernel is asked
                await asyncio.sleep(0.05)
        gone_seconds = time.monotonic() - told_at
        async with asyncio.timeout(GONE_SECONDS_MAX):
            while {one["state"] for one in (await asyncio.to_thread(pair.status))["processes"]} != {"ready"}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)

    record_property("gone_seconds", gone_seconds)
    assert not streams.lost
    assert {instance for began, instance in streams.instances if began < told_at} == {"gateway-0", "gateway-1"}
    charged = {told["request_id"]: told["micro_credits_charged"] for told in streams.whole}
    assert set(charged.values()) == {PRICE_MICROS}
    rows = pages(pair, tenant, "usage", "requestId chargedMicros outcome")
    assert {row["requestId"]: int(row["chargedMicros"]) for row in rows} == charged
    assert {row["outcome"] for row in rows} == {"ok"}
    assert pair.wallet(tenant)["settledMicros"] == BOUGHT_MICROS - sum(charged.values())


async def test_beyond_its_limit_a_gateway_refuses_at_once_and_serves_on_those_whom_it_let_in(
    pair: Mesh, record_property: Callable[[str, object], None]
) -> None:
    tenant = await asyncio.to_thread(pair.tenant, BOUGHT_MICROS)
    url = f"{pair.gateway_url}/v1/chat/completions"
    refused_ms: list[float] = []
    full: set[str] = set()
    whole: Counter[str] = Counter()

    async def ask() -> None:
        headers = {"authorization": f"Bearer {tenant.api_key}", "x-mock": "latency_ms=200;event_ms=300"}
        began = time.monotonic()
        async with session.post(url, json=BODY, headers=headers) as response:
            text = await response.text()
        instance = response.headers["x-mandate-instance"]
        if response.status == 200:
            assert platform_of(text, streamed=True) is not None
            whole[instance] += 1
            return
        refused_ms.append((time.monotonic() - began) * 1000)
        full.add(instance)
        assert (response.status, json.loads(text)["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session,
        asyncio.TaskGroup() as group,
    ):
        async with asyncio.timeout(FILL_SECONDS_MAX):
            while full != {"gateway-0", "gateway-1"}:  # a connection falls to whichever is awake, often to the same
                for _ in range(4 * SEATS):
                    group.create_task(ask())
                await asyncio.sleep(0.7)
        refused_ms.clear()  # those from here on are counted
        for _ in range(20):
            group.create_task(ask())
            await asyncio.sleep(0.02)
    assert len(refused_ms) >= 20, "more was let in than there were seats"
    record_property("refused_ms", (statistics.median(refused_ms), max(refused_ms)))
    assert statistics.median(refused_ms) <= AT_ONCE_MS
    assert whole == {"gateway-0": SEATS, "gateway-1": SEATS}
