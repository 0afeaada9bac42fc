"""Measure the ledger against pgbench's TPC-B on the same durable cluster, in interleaved rounds; tell medians.

Run it as `make bench-ledger`. Every figure is a ratio to the pgbench of its own round (scale 10, 8 clients).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

import grpc

from ledger_svc.holds import Granted, Placing, Posting, Settled, Settling
from ledger_svc.store import charges, statements, wallets
from ledger_svc.store.wallets import NewTransfer
from mandate.ledger.v1 import charges_pb2, charges_pb2_grpc
from mesh import ids
from mesh.ids import Kind
from tests.bench.ledger_load import call_unary, charge_over_stream, hold, settlement
from tests.bench.ledger_standing import Fleet, Standing, fleet, serving, standing

BATCH, CONNECTIONS, HOLDERS, CALLERS = 1_000, 2, 64, 64
AHEAD = 20  # batches made before they are written
HISTORY = 1_000_000
LOOKS = 300
PGBENCH, ECHO = "pgbench TPC-B, 8 clients", "unary calls, an echo"


@dataclass(frozen=True)
class Goal:
    """What a figure is to reach: so many times another one of its round, and at most so long."""

    of: str
    times: float
    p99_ms: float = float("inf")


@dataclass
class Found:
    """What was measured of one thing, a value a round."""

    rates: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)


class Bench:
    """The figures so far."""

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}

    def add(self, name: str, rate: float, p99_ms: float | None = None) -> None:
        """Take in one round's figure."""
        found = self.found.setdefault(name, Found())
        found.rates.append(rate)
        if p99_ms is not None:
            found.p99s_ms.append(p99_ms)

    def line(self, name: str, goal: Goal | None) -> str:
        """Return the medians of one thing beside its goal."""
        found = self.found[name]
        text = f"{name:<58} {median(found.rates):9,.0f}/s"
        p99 = median(found.p99s_ms) if found.p99s_ms else None
        if goal is None:
            return text
        ratios = [rate / other for rate, other in zip(found.rates, self.found[goal.of].rates, strict=True)]
        reached = median(ratios) >= goal.times and (p99 is None or p99 <= goal.p99_ms)
        wanted = f"{goal.times:g} x" + (f", {goal.p99_ms:g} ms" if p99 is not None else "")
        at = f"  p99 {p99:5.1f} ms" if p99 is not None else " " * 14
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        return (
            f"{text}  {median(ratios):6.2f} x {spread:<18}{at}  wanted {wanted:<14} {'met' if reached else 'NOT MET'}"
        )


class Batches(Protocol):
    """Something to write in batches: what is written is made beforehand, and only the writing is timed."""

    def make(self, number: int) -> Any:
        """Return one batch."""
        ...

    async def write(self, batch: Any) -> None:
        """Write it, and check every answer."""
        ...


async def written(kind: Batches, seconds: float) -> float:
    """Write batch after batch over a few connections for so long; return items a second."""
    done, spent, number = 0, 0.0, 0
    while spent < seconds:
        waiting = [kind.make(number + k) for k in range(AHEAD)]
        number += AHEAD
        started = time.perf_counter()

        async def writer(mine: list[Any]) -> None:
            for batch in mine:
                await kind.write(batch)

        await asyncio.gather(*(writer(waiting[k::CONNECTIONS]) for k in range(CONNECTIONS)))
        spent += time.perf_counter() - started
        done += AHEAD * BATCH
    return done / spent


@dataclass(frozen=True)
class Transfers:
    """Transfers in and out of one wallet."""

    at: Standing
    organization: str

    def make(self, number: int) -> list[NewTransfer]:
        """Return a batch that begins with credits."""
        del number
        ends = (("adjustments", "wallet"), ("wallet", "adjustments"))
        return [
            NewTransfer(ids.new(Kind.REQUEST), "adjustment", *ends[k % 2], 100 + k, "bench", False)
            for k in range(BATCH)
        ]

    async def write(self, batch: list[NewTransfer]) -> None:
        """Post it."""
        posted, _ = await wallets.post_batch(self.at.database, self.organization, batch, "bench")
        assert all(done.status == wallets.POSTED for done in posted)


@dataclass(frozen=True)
class OnePhase:
    """Charges that have their price."""

    at: Standing
    agents: Fleet

    def make(self, number: int) -> list[Posting]:
        """Return a batch over all agents."""
        paths = self.agents.agents
        return [
            Posting(ids.new(Kind.REQUEST), paths[(number + k) % len(paths)][-1], 4, "key", "", "mcp", "search", 2_400)
            for k in range(BATCH)
        ]

    async def write(self, batch: list[Posting]) -> None:
        """Post it."""
        posted = await charges.post(self.at.database, self.agents.organization, batch)
        assert all(isinstance(done, Settled) for done in posted)


@dataclass(frozen=True)
class Complete:
    """Holds, and then their settlements."""

    at: Standing
    agents: Fleet

    def make(self, number: int) -> list[tuple[Placing, Settling]]:
        """Return a batch over all agents."""
        placings = [self.agents.placing(number * BATCH + k) for k in range(BATCH)]
        return [(placing, self.agents.settling(placing)) for placing in placings]

    async def write(self, batch: list[tuple[Placing, Settling]]) -> None:
        """Place it in one commit and settle it in another."""
        database, organization = self.at.database, self.agents.organization
        placed = await charges.place(database, organization, [(placing, True) for placing, _ in batch])
        assert all(isinstance(answer, Granted) for answer in placed)
        settled = await charges.settle(database, organization, [settling for _, settling in batch])
        assert all(isinstance(answer, Settled) for answer in settled)


async def unary(channel: grpc.aio.Channel, agents: Fleet, seconds: float) -> float:
    """Return the calls a second of many callers, each of which places a hold and settles it, one item a call."""
    stub, holder = charges_pb2_grpc.ChargeServiceStub(channel), ids.new(Kind.HOLDER)

    async def call(number: int) -> None:
        place = hold(agents, number)
        held = await stub.PlaceHolds(charges_pb2.PlaceHoldsRequest(holder_id=holder, holds=[place]), timeout=30)
        assert held.holds[0].WhichOneof("outcome") == "granted", held
        request = charges_pb2.SettleHoldsRequest(settles=[settlement(place.request_id, place.agent_id)])
        settled = await stub.SettleHolds(request, timeout=30)
        assert settled.settles[0].WhichOneof("outcome") == "settled", settled

    return 2 * (await call_unary(call, CALLERS, seconds)).rate


BATCHED = "complete charges, wallet + 12 windows, batches of 1000"
STREAMED = "complete charges, wallet + 12 windows, 64 on a stream"
GOALS = {
    PGBENCH: None,
    "transfers on one hot account, batches of 1000": Goal(PGBENCH, 20),
    "one-phase charges, wallet + 12 windows, batches of 1000": Goal(PGBENCH, 8),
    BATCHED: Goal(PGBENCH, 4),
    STREAMED: Goal(PGBENCH, 1.5, 60),
    "complete charges, wallet only, 64 on a stream": Goal(PGBENCH, 6, 30),
    ECHO: None,
    "unary calls, one item each, 64 callers": Goal(ECHO, 0.6),
}


async def rounds(at: Standing, count: int, seconds: float) -> Bench:
    """Measure everything in turn, so many times."""
    bench = Bench()
    windowed, bare = await fleet(at, windows=True), await fleet(at, windows=False)
    hot = await fleet(at, windows=False)
    names = list(GOALS)
    async with serving(at) as ledger, serving(at, "tests.bench.echo") as echo:
        for number in range(count + 1):  # the first one warms up and is forgotten
            if number == 1:
                bench = Bench()
            bench.add(PGBENCH, await at.pgbench(round(seconds)))
            bench.add(names[1], await written(Transfers(at, hot.organization), seconds))
            bench.add(names[2], await written(OnePhase(at, windowed), seconds))
            bench.add(BATCHED, await written(Complete(at, windowed), seconds))
            for name, agents in ((STREAMED, windowed), (names[5], bare)):
                figures = await charge_over_stream(ledger, agents, HOLDERS, seconds)
                bench.add(name, figures.rate, figures.p99_ms)
            bench.add(ECHO, await unary(echo, bare, seconds))
            bench.add(names[7], await unary(ledger, bare, seconds))
        await with_history(at, ledger, windowed, seconds)
    for agents in (windowed, bare, hot):
        wrong, _ = await statements.verify(at.database, agents.organization)
        assert not wrong, wrong
    return bench


async def with_history(at: Standing, ledger: grpc.aio.Channel, used: Fleet, seconds: float) -> None:
    """Compare an organization with 1,000,000 rows of history and a new one, in turns; look its balances up."""
    rows: int = await at.database.value("SELECT last_usage($1)", used.organization)
    one_phase = OnePhase(at, used)
    for number in range(max(0, HISTORY - rows) // BATCH + 1):
        await one_phase.write(one_phase.make(number))
    fresh = await fleet(at, windows=True)
    bench = Bench()
    for _ in range(5):
        for name, agents in (("new", fresh), ("old", used)):
            bench.add(name, await written(Complete(at, agents), seconds))
            figures = await charge_over_stream(ledger, agents, HOLDERS, seconds)
            bench.add(f"{name} stream", figures.rate, figures.p99_ms)
    rows = await at.database.value("SELECT last_usage($1)", used.organization)
    print(f"\n{rows:,} rows of history; ratios to an organization that began with none (which grew too)")
    print(f"{BATCHED}: {_ratio(bench, 'old', 'new'):.2f} (wanted 0.6)")
    print(f"{STREAMED}: {_ratio(bench, 'old stream', 'new stream'):.2f} (wanted 0.6)")
    taken = sorted([await _look_up(at, used, number) for number in range(LOOKS)])
    print(f"balance as of a past transfer: p50 {taken[LOOKS // 2]:.2f} ms, p95 {quantiles(taken, n=20)[18]:.2f} ms (5)")
    started = time.perf_counter()
    await statements.verify(at.database, used.organization)
    print(f"the books recomputed in {time.perf_counter() - started:.1f} s")


def _ratio(bench: Bench, one: str, other: str) -> float:
    pairs = zip(bench.found[one].rates, bench.found[other].rates, strict=True)
    return median(rate / against for rate, against in pairs)


async def _look_up(at: Standing, used: Fleet, number: int) -> float:
    """Return how long one balance took, in milliseconds: the wallet's, or a budget's of one agent or another."""
    last = await statements.seq_at(at.database, used.organization, None)
    seq = (number * 2_654_435_761) % last
    name = "wallet"
    if number % 2:
        target = used.agents[number % len(used.agents)][number % 4]
        name = await at.database.value(
            "SELECT id FROM budgets WHERE target_id = $1 AND period = 'total' LIMIT 1", target
        )
    started = time.perf_counter()
    account = await statements.account(at.database, used.organization, name, None)
    assert account
    await statements.balance_at(at.database, used.organization, account, seq)
    return (time.perf_counter() - started) * 1000


async def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with standing(Path(folder)) as at:
            await at.prepare_pgbench()
            bench = await rounds(at, chosen.rounds, chosen.seconds)
    print(f"\nmedians of {chosen.rounds} rounds; fsync, synchronous_commit and full_page_writes on")
    for name, goal in GOALS.items():
        print(bench.line(name, goal))


if __name__ == "__main__":
    asyncio.run(main())
