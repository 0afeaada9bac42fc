"""Measure the gateway beside LiteLLM, Portkey and a bare pass-through: one provider, one load, in interleaved rounds.

Run it as `make bench-gateway`. Each gateway is one process alone on core 1; the provider, the load and all that stands
behind ours (PostgreSQL, Valkey, ledger, identity, vault) share core 0. Ours holds, settles and audits every completion
durably before it answers; the others keep no books.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from tests.bench.gateway_floor import echo, floor
from tests.bench.gateway_goals import (
    GOALS,
    SHAPES,
    STREAM_16,
    WHOLE_16,
    WHOLE_64,
    Round,
    Shape,
    added,
    added_first,
    judge,
    judge_memory,
)
from tests.bench.gateway_goals import floor as governed_floor
from tests.bench.gateway_load import WHOLE, Slice, Target, ask_exactly, drive
from tests.bench.gateway_mesh import OURS, Ours, ours
from tests.bench.gateway_peers import BARE, bare, litellm, portkey, provider
from tests.bench.gateway_processes import OTHERS_CORE, cpu_seconds, pin, rss_mb

PEERS = {"portkey": portkey, "litellm": litellm}
WARM_SECONDS = 1.0
FLOOR_SECONDS = 1.0
IDLE_SECONDS = 3.0
SAMPLES = 10


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int
    seconds: float
    agents: int
    sample_requests: int  # completions between two samples of memory
    without: Sequence[str]

    @classmethod
    def chosen(cls) -> Options:
        """Read the command line."""
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--seconds", type=float, default=4.0)
        parser.add_argument("--without", choices=sorted(PEERS), action="append", default=[], help="leave a peer out")
        parser.add_argument("--quick", action="store_true", help="see that it works; its figures mean nothing")
        found = parser.parse_args()
        if found.quick:
            return cls(1, 1.0, 20, 500, found.without)
        return cls(found.rounds, found.seconds, 200, 10_000, found.without)


@dataclass(frozen=True)
class Bench:
    """All that is measured, running."""

    mesh: Ours
    targets: Sequence[Target]
    echo_port: int

    async def round(self, seconds: float) -> Round:
        """Measure everything in turn."""
        slices: dict[tuple[str, Shape], Slice] = {}
        for shape in SHAPES:
            for target in self.targets:
                found = await drive(target, shape.kind, shape.connections, seconds, min(WARM_SECONDS, seconds))
                slices[target.name, shape] = found
                self.mesh.charges.extend(found.charges)
        mesh = self.mesh.mesh
        return Round(slices, await floor(mesh.home, mesh.base_port, self.echo_port, min(FLOOR_SECONDS, seconds)))

    async def memory(self, requests_each: int) -> list[float]:
        """Return the gateway's memory after each so many completions more."""
        samples: list[float] = []
        for _ in range(SAMPLES):
            self.mesh.charges.extend(await ask_exactly(self.mesh.target, WHOLE, 16, requests_each))
            samples.append(rss_mb(self.mesh.target.processes["gateway"]))
        return samples


@asynccontextmanager
async def running(folder: Path, options: Options) -> AsyncGenerator[Bench]:
    """Start everything; the peers first, so that what cannot be fetched is known at once."""
    async with AsyncExitStack() as stack:
        asked = await stack.enter_async_context(provider(folder))
        targets = [asked.target, await stack.enter_async_context(bare(asked, folder))]
        for name, peer in PEERS.items():
            found = None if name in options.without else await stack.enter_async_context(peer(asked, folder))
            if found:
                targets.append(found)
            else:
                print(f"{name} is left out{'' if name in options.without else ': there is no node and npm here'}")
        mesh = await stack.enter_async_context(ours(asked, folder / "home", options.agents))
        echo_port = await stack.enter_async_context(echo(mesh.mesh.home, folder))
        yield Bench(mesh, [*targets, mesh.target], echo_port)


async def idle(target: Target) -> str:
    """Say what the mesh takes while others are measured."""
    before = cpu_seconds(target.processes)
    await asyncio.sleep(IDLE_SECONDS)
    after = cpu_seconds(target.processes)
    shares = {name: (after[name] - before[name]) / IDLE_SECONDS for name in before}
    others = sum(shares.values()) - shares["gateway"]
    return f"idle, {OURS} takes {shares['gateway']:.1%} of core 1 and {others:.1%} of core 0"


def show(rounds: Sequence[Round]) -> None:
    """Print the medians of all rounds."""
    names = list(dict.fromkeys(name for name, _ in rounds[0].slices))
    for shape in SHAPES:
        print(f"\n{shape!s:<40}{'a second':>10}{'p50 ms':>10}{'p99 ms':>10}{'first ms':>10}{'CPU us':>10}")
        for name in names:
            found = [measured.slices[name, shape] for measured in rounds]
            columns = (
                f"{median(part.rate for part in found):10,.0f}",
                *(
                    f"{median(getattr(part, each) for part in found):10.2f}"
                    for each in ("p50_ms", "p99_ms", "first_p50_ms")
                ),
                f"{median(next(iter(part.cpu_us.values())) for part in found):10,.0f}",
            )
            print(f"  {name:<38}{''.join(columns)}")
    show_cpu(rounds)
    show_floor(rounds)
    stolen = [part.stolen for measured in rounds for part in measured.slices.values()]
    print(f"the host kept {median(stolen):.1%} of the machine from us, at most {max(stolen):.1%} of a slice")


def show_cpu(rounds: Sequence[Round]) -> None:
    """Print what each process of the mesh takes for one answer."""
    processes = list(rounds[0].slices[OURS, WHOLE_16].cpu_us)
    print(f"\n{OURS + ', CPU us an answer':<40}" + "".join(f"{name:>10}" for name in [*processes, "all"]))
    for shape in (WHOLE_16, WHOLE_64, STREAM_16):
        found = [measured.slices[OURS, shape].cpu_us for measured in rounds]
        shares = [median(part[name] for part in found) for name in processes]
        shares.append(median(sum(part.values()) for part in found))
        print(f"  {shape!s:<38}" + "".join(f"{share:10,.0f}" for share in shares))


def show_floor(rounds: Sequence[Round]) -> None:
    """Print what a governed completion is made of, and what ours adds."""
    parts: Mapping[str, float] = {
        "commit": median(measured.floor.commit_ms for measured in rounds),
        "stream round trip": median(measured.floor.stream_ms for measured in rounds),
        "Valkey round trip": median(measured.floor.cache_ms for measured in rounds),
        "pass-through adds": median(added(BARE)(measured) for measured in rounds),
        "floor": median(governed_floor(measured) for measured in rounds),
        "ours adds": median(added(OURS)(measured) for measured in rounds),
        "to a first chunk": median(added_first(OURS)(measured) for measured in rounds),
    }
    print("\nms at 1 connection: " + ", ".join(f"{name} {taken:.2f}" for name, taken in parts.items()))


async def main() -> int:
    """Print the figures; 1 when a goal is missed."""
    options = Options.chosen()
    assert (os.cpu_count() or 1) > 1, "this needs two cores"
    print(f"load of the machine before the start: {os.getloadavg()[0]:.2f}")
    pin(os.getpid(), OTHERS_CORE)
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), options) as bench:
            print(await idle(bench.mesh.target), flush=True)
            await bench.round(min(1.0, options.seconds))  # warms up and is forgotten
            rounds: list[Round] = []
            for number in range(options.rounds):
                rounds.append(await bench.round(options.seconds))
                print(f"round {number + 1} of {options.rounds}", flush=True)
            samples_mb = await bench.memory(options.sample_requests)
            books = await bench.mesh.check_books()
    show(rounds)
    print(f"MB after each {options.sample_requests:,}: " + ", ".join(f"{sample:.1f}" for sample in samples_mb))
    print(f"{books}\n")
    verdicts = [judge(goal, rounds) for goal in GOALS] + judge_memory(samples_mb, options.sample_requests)
    print("\n".join(verdict.line for verdict in verdicts))
    return 1 if any(verdict.short for verdict in verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
