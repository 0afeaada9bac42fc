"""Kill each part of a mesh under load; afterwards the model's own bill and the ledger must tell one story."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.chaos, pytest.mark.timeout(280)]

UPSTREAM = Path(__file__).parent.parent / "fakes" / "upstream.py"
CALLERS = 32
BOUGHT_MICROS = 10**12
RECOVERY_SECONDS = 10.0
TARGETS = ("gateway", "ledger", "postgres", "identity", "vault", "valkey", "edge")


@contextlib.contextmanager
def upstream(bill: Path) -> Generator[str]:
    """Run a provider of its own that writes down what each call costs before it answers."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(UPSTREAM), "--port", str(port), "--bill", str(bill), "--orders", ":latency_ms=250"]
    with subprocess.Popen(command) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@dataclass
class Load:
    """Callers that never give up, and what they were told."""

    url: str
    api_key: str
    charged: dict[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    last_success: float = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Call all the time inside the block; at its end every caller finishes what it began."""
        stop = asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=45)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call_until(stop, session, streamed=number % 2 == 0))
            try:
                yield
            finally:
                stop.set()

    async def _call_until(self, stop: asyncio.Event, session: aiohttp.ClientSession, *, streamed: bool) -> None:
        while not stop.is_set():
            self.in_flight += 1
            try:
                await self._call(session, streamed=streamed)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                self.failures[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            finally:
                self.in_flight -= 1

    async def _call(self, session: aiohttp.ClientSession, *, streamed: bool) -> None:
        body = {
            "model": "gpt-6-luna",
            "messages": [{"role": "user", "content": "say some words"}],
            "max_tokens": 50,
            "stream": streamed,
        } | ({"stream_options": {"include_usage": True}} if streamed else {})
        headers = {"authorization": f"Bearer {self.api_key}"}
        async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
        if response.status != 200:
            self.failures[f"{response.status} {json.loads(text)['error']['code']}"] += 1
            await asyncio.sleep(0.05)
            return
        platform = platform_of(text, streamed=streamed)
        if platform is None:
            self.failures["stream ended with an error"] += 1
            return
        self.charged[platform["request_id"]] = platform["micro_credits_charged"]
        self.last_success = time.monotonic()


def platform_of(text: str, *, streamed: bool) -> dict[str, Any] | None:
    """Find what the agent was told it was charged."""
    if not streamed:
        return json.loads(text)["x_platform"]
    if "data: [DONE]" not in text:
        return None
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return next(event["x_platform"] for event in events if "x_platform" in event)


def pages(mesh: Mesh, tenant: Tenant, name: str, fields: str) -> list[dict[str, Any]]:
    """Read a whole list of an organization."""
    query = f"""query Q($id: ID!, $after: String) {{ organization(id: $id) {{ {name}(first: 100, after: $after) {{
        nodes {{ {fields} }} pageInfo {{ endCursor hasNextPage }} }} }} }}"""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = mesh.graphql(query, {"id": tenant.organization_id, "after": after}, tenant.token)["organization"][name]
        found += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def recovered(mesh: Mesh, load: Load, killed_at: float) -> float:
    """Wait until every part is ready, GraphQL answers and completions succeed; return how long that took."""
    while time.monotonic() - killed_at < 3 * RECOVERY_SECONDS:
        await asyncio.sleep(0.1)
        began = time.monotonic()
        states = {process["state"] for process in (await asyncio.to_thread(mesh.status))["processes"]}
        if states != {"ready"}:
            continue
        try:
            await asyncio.to_thread(mesh.tenant, 1)
        except Exception:  # noqa: BLE001, S112  # whatever is still down: try again until the time is up
            continue
        if load.last_success > began:
            return time.monotonic() - killed_at
    return float("inf")


@dataclass
class Story:
    """What the ledger says happened, read through GraphQL."""

    wallet: dict[str, int]
    charged: dict[str, int]
    settled: Counter[str]
    uncertain: dict[str, int]
    entries_sum: int


async def story_of(mesh: Mesh, tenant: Tenant) -> Story:
    """Wait until no hold is open, then read everything."""
    for _ in range(150):
        if (await asyncio.to_thread(mesh.wallet, tenant))["heldMicros"] == 0:
            break
        await asyncio.sleep(0.1)
    usage = pages(mesh, tenant, "usage", "requestId chargedMicros")
    uncertain = pages(mesh, tenant, "uncertainHolds", "requestId ceilingMicros")
    return Story(
        wallet=mesh.wallet(tenant),
        charged={row["requestId"]: int(row["chargedMicros"]) for row in usage},
        settled=Counter(row["requestId"] for row in usage),
        uncertain={row["requestId"]: int(row["ceilingMicros"]) for row in uncertain},
        entries_sum=sum(int(entry["amountMicros"]) for entry in pages(mesh, tenant, "entries", "amountMicros")),
    )


async def test_every_part_may_be_killed_under_load(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    bill = tmp_path / "bill.jsonl"
    in_flight: dict[str, int] = {}
    took: dict[str, float] = {}
    with upstream(bill) as url:
        mesh = Mesh(tmp_path / "home", extra={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-upstream-0123456789"})
        with mesh.up():
            tenant = await asyncio.to_thread(mesh.tenant, BOUGHT_MICROS)
            load = Load(mesh.gateway_url, tenant.api_key)
            async with load.running():
                for target in TARGETS:
                    await asyncio.sleep(1.0)
                    in_flight[target] = load.in_flight
                    killed_at = time.monotonic()
                    await asyncio.to_thread(mesh.kill, target)
                    took[target] = await recovered(mesh, load, killed_at)
            story = await story_of(mesh, tenant)

    record_property("recovery_seconds", took)
    record_property("counts", (len(story.settled), len(story.uncertain), in_flight, dict(load.failures)))
    assert max(took.values()) <= RECOVERY_SECONDS, took
    billed = Counter(json.loads(line)["request_id"] for line in bill.read_text().splitlines())
    assert set(billed.values()) == set(story.settled.values()) == {1}
    assert set(story.settled) <= set(billed), "a settled row without a call of the model"
    assert set(billed) <= set(story.settled) | set(story.uncertain), "a call of the model that is in no row"
    assert not set(story.settled) & set(story.uncertain)
    assert len(story.uncertain) <= sum(in_flight.values())
    assert {request_id: story.charged[request_id] for request_id in load.charged} == load.charged
    assert story.entries_sum == 0
    assert story.wallet["heldMicros"] == 0
    spent = sum(story.charged.values()) + sum(story.uncertain.values())
    assert story.wallet["settledMicros"] == BOUGHT_MICROS - spent
