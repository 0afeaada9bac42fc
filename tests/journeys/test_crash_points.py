"""Kill gateway, ledger and PostgreSQL at each named point of a completion; the bill and the ledger tell one story."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.journeys.completion_load import CALLERS, CUT, UNKNOWN, Load, Story, check, story_of, upstream
from tests.journeys.running import Mesh, Tenant

BOUGHT_MICROS = 10**12
KILLS_EACH = 5
KILLS_AT_RANDOM = 50
KILLS_A_MESH = 10  # the supervisor waits longer for each next start of what dies again and again
RECOVERY_SECONDS = 30.0  # most of it the supervisor's pause before the fifth start in a row
REACH_SECONDS = 20.0
VICTIMS = ("gateway", "ledger", "postgres")
STEPS = {
    "credential": ("asking", "given"),
    "hold": ("asking", "granted"),
    "dispatch": ("asking", "answered"),
    "settle": ("asking", "charged"),
    "replay": ("keeping", "kept"),
    "reply": ("sending", "sent"),
}
POINTS = [f"gateway.{step}.{moment}" for step, moments in STEPS.items() for moment in moments]
QUICK = [
    ("gateway.hold.granted", "gateway"),
    ("gateway.settle.asking", "ledger"),
    ("gateway.dispatch.answered", "gateway"),
    ("gateway.hold.granted", "postgres"),
    ("gateway.settle.charged", "gateway"),
    ("gateway.settle.asking", "postgres"),
]
SEED = 20_261_121

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]


@dataclass
class Crash:
    """A mesh under load whose processes are killed, and how each kill went."""

    mesh: Mesh
    tenant: Tenant
    load: Load
    orders: Path
    bill: Path
    in_flight: dict[str, list[int]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})

    async def at(self, point: str, victim: str) -> None:
        """Kill a process when a completion comes to a point."""
        pid = await asyncio.to_thread(self.mesh.pid, victim)
        draft = self.orders.with_name("draft")
        draft.write_text(f"{point} {0 if victim == 'gateway' else pid}")
        draft.rename(self.orders)
        reached = self.orders.with_name(self.orders.name + ".reached")
        async with asyncio.timeout(REACH_SECONDS):
            while not reached.exists():  # noqa: ASYNC110  # another process makes it
                await asyncio.sleep(0.01)
        killed_at = float(reached.read_text()) / 1000
        reached.unlink()
        await self._risen(victim, pid, killed_at)

    async def at_random(self, victim: str) -> None:
        """Kill a process now."""
        pid = await asyncio.to_thread(self.mesh.pid, victim)
        killed_at = time.monotonic()
        await asyncio.to_thread(self.mesh.kill, victim)
        await self._risen(victim, pid, killed_at)

    async def _risen(self, victim: str, pid: int, killed_at: float) -> None:
        """Wait until all is ready and somebody has been served since."""
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                began = time.monotonic()
                shown = (await asyncio.to_thread(self.mesh.status))["processes"]
                if {one["state"] for one in shown} == {"ready"} and pid not in {one["pid"] for one in shown}:
                    break
                await asyncio.sleep(0.1)
            while self.load.last_success < began:  # noqa: ASYNC110  # what is waited for is another's word
                await asyncio.sleep(0.02)
        self.in_flight[victim].append(self.load.in_flight_at(killed_at))
        self.seconds[victim].append(time.monotonic() - killed_at)


@asynccontextmanager
async def crashing(folder: Path, *arguments: str) -> AsyncGenerator[tuple[Crash, list[Story]]]:
    """Keep a mesh under load inside the block; at its end its story is added to the list that is given."""
    bill, orders, stories = folder / "bill.jsonl", folder / "orders", list[Story]()
    with upstream(bill) as url:
        extra = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-upstream-0123456789"}
        mesh = Mesh(folder / "home", extra=extra | {"MANDATE_FAILPOINT_FILE": str(orders)})
        with mesh.up(*arguments):
            tenant = await asyncio.to_thread(mesh.tenant, BOUGHT_MICROS)
            crash = Crash(mesh, tenant, Load(mesh.gateway_url, tenant.api_key, keyed=True), orders, bill)
            async with crash.load.running():
                await asyncio.sleep(0.5)
                yield crash, stories
            stories.append(await story_of(mesh, tenant))


def judge(crash: Crash, story: Story, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Check everything, and say how it went."""
    kills = {victim: len(found) for victim, found in crash.in_flight.items() if found}
    longest = {victim: round(max(found), 1) for victim, found in crash.seconds.items() if found}
    in_flight = sum(crash.in_flight["gateway"])
    ends = Counter(heard.told or ("replay" if heard.replayed else "answer") for heard in crash.load.ended_keys.values())
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}: kills {kills}, settled {len(story.settled)}, uncertain {len(story.uncertain)} of "
            f"{in_flight} in flight, longest recovery {longest} s; keys ended {dict(ends)}; "
            f"told {dict(crash.load.failures)}\n"
        )
    check(story, crash.load, crash.bill, BOUGHT_MICROS)
    assert set(ends) <= {"answer", "replay", UNKNOWN, CUT}
    assert max((n for found in crash.in_flight.values() for n in found), default=0) <= CALLERS
    assert len(story.uncertain) <= in_flight, "more holds uncertain than the killed gateways had in flight"


@pytest.mark.chaos
async def test_a_kill_in_the_midst_of_a_completion_bills_nobody_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with crashing(tmp_path) as (crash, stories):
        for point, victim in QUICK:
            await crash.at(point, victim)
    judge(crash, stories[0], capsys, "quick")


@pytest.mark.chaos_long
@pytest.mark.parametrize("point", POINTS)
async def test_no_point_of_a_completion_is_one_to_be_killed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    async with crashing(tmp_path) as (crash, stories):
        for _ in range(KILLS_EACH):
            for victim in VICTIMS:
                await crash.at(point, victim)
    judge(crash, stories[0], capsys, point)


@pytest.mark.chaos_long
@pytest.mark.parametrize("seed", range(SEED, SEED + KILLS_AT_RANDOM // KILLS_A_MESH))
async def test_no_moment_is_one_to_be_killed_at(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # no secret: a run that failed is run again
    async with crashing(tmp_path, "--replicas", "gateway=2") as (crash, stories):
        for _ in range(KILLS_A_MESH):
            await asyncio.sleep(chance.random())
            await crash.at_random(chance.choice(VICTIMS))
    judge(crash, stories[0], capsys, f"random {seed}")
