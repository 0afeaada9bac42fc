"""Callers that never give up on a gateway, what they were told, and what the model's bill and the ledger say of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.journeys.running import Mesh, Tenant

UPSTREAM = Path(__file__).parent.parent / "fakes" / "upstream.py"
CALLERS = 32
AGAIN_SECONDS = 0.05
KEYED_TRIES_MAX = 4  # then the key is left for `finish`, and its caller goes on with another
FINISH_TRIES_MAX = 80
FINISH_PAUSE_SECONDS = 0.5
CUT = "stream ended with an error"
UNKNOWN = "409 idempotency_outcome_unknown"
MODEL = "gpt-6-luna"


@contextlib.contextmanager
def upstream(bill: Path, orders: str = ":latency_ms=250") -> Generator[str]:
    """Run a provider of its own that writes down what each call costs before it answers."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(UPSTREAM), "--port", str(port), "--bill", str(bill), "--orders", orders]
    with subprocess.Popen(command) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Call:
    """What one caller asks, and under which key it asks it again."""

    text: str
    streamed: bool
    key: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a caller was told: what it was charged, or in a word why not."""

    told: str
    platform: dict[str, Any] | None = None
    replayed: bool = False


@dataclass
class Load:
    """Callers, a `keyed` share of whom name their requests by an Idempotency-Key, and what they were told."""

    url: str
    api_key: str
    keyed: bool = False
    callers: int = CALLERS
    charged: dict[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    replays: int = 0
    unfinished: list[Call] = field(default_factory=list)
    ended_keys: dict[str, Heard] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    last_success: float = 0.0

    @property
    def in_flight(self) -> int:
        return len(self.began)

    def in_flight_at(self, moment: float) -> int:
        """Count the requests that had begun and not ended at a moment of the monotonic clock."""
        ended = sum(begin <= moment < end for begin, end in self.spans)
        return ended + sum(begin <= moment for begin in self.began.values())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Call all the time inside the block; at its end every caller finishes what it began."""
        stop = asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=45)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with asyncio.TaskGroup() as group:
                for number in range(self.callers):
                    group.create_task(self._call_until(stop, session, number))
                try:
                    yield
                finally:
                    stop.set()
            await self._finish(session)

    async def _call_until(self, stop: asyncio.Event, session: aiohttp.ClientSession, number: int) -> None:
        while not stop.is_set():
            text = uuid.uuid4().hex
            call = Call(text, streamed=number % 2 == 0, key=text if self.keyed and number % 4 < 2 else "")
            for _ in range(KEYED_TRIES_MAX if call.key else 1):
                heard = await self._once(session, call, number)
                if self._is_over(call, heard):
                    break
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                if call.key:
                    self.unfinished.append(call)

    async def _finish(self, session: aiohttp.ClientSession) -> None:
        """Ask again under every key without an outcome, until each has one."""
        for _ in range(FINISH_TRIES_MAX):
            if not self.unfinished:
                return
            left, self.unfinished = self.unfinished, []
            for call in left:
                if not self._is_over(call, await self._once(session, call, -1)):
                    self.unfinished.append(call)
            await asyncio.sleep(FINISH_PAUSE_SECONDS)

    def _is_over(self, call: Call, heard: Heard) -> bool:
        if heard.platform is None and not (call.key and heard.told in {UNKNOWN, CUT}):
            return False
        if call.key:
            self.ended_keys[call.key] = heard
        return True

    async def _once(self, session: aiohttp.ClientSession, call: Call, number: int) -> Heard:
        self.began[number] = time.monotonic()
        try:
            heard = await self._call(session, call)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            heard = Heard(type(error).__name__)
        finally:
            self.spans.append((self.began.pop(number), time.monotonic()))
        if heard.platform is None:
            self.failures[heard.told] += 1
            return heard
        self.replays += heard.replayed
        self.charged[heard.platform["request_id"]] = heard.platform["micro_credits_charged"]
        self.last_success = time.monotonic()
        return heard

    async def _call(self, session: aiohttp.ClientSession, call: Call) -> Heard:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"say some words {call.text}"}],
            "max_tokens": 50,
            "stream": call.streamed,
        } | ({"stream_options": {"include_usage": True}} if call.streamed else {})
        headers = {"authorization": f"Bearer {self.api_key}"} | ({"idempotency-key": call.key} if call.key else {})
        async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
        replayed = response.headers.get("idempotency-replayed") == "true"
        if response.status != 200:
            return Heard(f"{response.status} {json.loads(text)['error']['code']}", replayed=replayed)
        platform = platform_of(text, streamed=call.streamed)
        return Heard("" if platform else CUT, platform, replayed)


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


async def recovered(mesh: Mesh, load: Load, killed_at: float, patience_seconds: float) -> float:
    """Wait until every part is ready, GraphQL answers and completions succeed; return how long that took."""
    while time.monotonic() - killed_at < patience_seconds:
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
    usage: dict[str, dict[str, Any]]
    settled: Counter[str]
    uncertain: dict[str, int]
    entries_sum: int

    @property
    def charged(self) -> dict[str, int]:
        return {request_id: int(row["chargedMicros"]) for request_id, row in self.usage.items()}


async def story_of(mesh: Mesh, tenant: Tenant) -> Story:
    """Wait until no hold is open, then read everything."""
    for _ in range(300):
        if (await asyncio.to_thread(mesh.wallet, tenant))["heldMicros"] == 0:
            break
        await asyncio.sleep(0.1)
    usage = pages(mesh, tenant, "usage", "requestId chargedMicros inputTokens outputTokens usageSource")
    uncertain = pages(mesh, tenant, "uncertainHolds", "requestId ceilingMicros")
    return Story(
        wallet=mesh.wallet(tenant),
        usage={row["requestId"]: row for row in usage},
        settled=Counter(row["requestId"] for row in usage),
        uncertain={row["requestId"]: int(row["ceilingMicros"]) for row in uncertain},
        entries_sum=sum(int(entry["amountMicros"]) for entry in pages(mesh, tenant, "entries", "amountMicros")),
    )


def check(story: Story, load: Load, bill: Path, bought_micros: int) -> None:
    """Check that the callers, the model's own bill and the ledger tell one story, and that its sums are right."""
    lines = [json.loads(line) for line in bill.read_text().splitlines()]
    billed = Counter(line["request_id"] for line in lines)
    assert set(billed.values()) == set(story.settled.values()) == {1}
    assert set(story.settled) <= set(billed), "a settled row without a call of the model"
    assert set(billed) <= set(story.settled) | set(story.uncertain), "a call of the model that is in no row"
    assert not set(story.settled) & set(story.uncertain)
    for line in lines:
        row = story.usage.get(line["request_id"])
        if row is not None and row["usageSource"] == "reported":
            assert (row["inputTokens"], row["outputTokens"]) == (line["prompt_tokens"], line["completion_tokens"])
    assert {request_id: story.charged[request_id] for request_id in load.charged} == load.charged
    assert story.entries_sum == 0
    assert story.wallet["heldMicros"] == 0
    spent = sum(story.charged.values()) + sum(story.uncertain.values())
    assert story.wallet["settledMicros"] == bought_micros - spent
    check_keys(load, lines)


def check_keys(load: Load, lines: list[dict[str, Any]]) -> None:
    """Check that nothing was billed twice under one key, and that whoever was answered got what was billed."""
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines:
        by_key[line["body"]["messages"][0]["content"].split()[-1]].append(line["request_id"])
    assert load.unfinished == []
    assert not {key: found for key, found in by_key.items() if key in load.ended_keys and len(found) > 1}
    for key, heard in load.ended_keys.items():
        if heard.platform is not None:
            assert by_key[key] == [heard.platform["request_id"]]
