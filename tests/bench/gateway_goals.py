"""What the gateway is to reach, each a ratio or a limit of figures of the same round. Nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

from tests.bench.gateway_floor import Floor
from tests.bench.gateway_load import STREAM, WHOLE, Slice
from tests.bench.gateway_mesh import OURS
from tests.bench.gateway_peers import BARE, DIRECT, LITELLM, PORTKEY

MEMORY_MB_MAX = 150
GROWTH_BYTES_MAX = 25  # a request, over the second half of them; anything that is kept of each is larger


@dataclass(frozen=True)
class Shape:
    """One kind of load."""

    kind: str
    connections: int

    def __str__(self) -> str:
        what = "completions" if self.kind == WHOLE else "streams of 100 events"
        return f"{what}, {self.connections} connection{'s' if self.connections > 1 else ''}"


WHOLE_1, WHOLE_16, WHOLE_64 = (Shape(WHOLE, connections) for connections in (1, 16, 64))
STREAM_1, STREAM_16 = (Shape(STREAM, connections) for connections in (1, 16))
SHAPES = (WHOLE_1, WHOLE_16, WHOLE_64, STREAM_1, STREAM_16)


@dataclass(frozen=True)
class Round:
    """All that was measured in turn, once; a target that isn't here has no slices."""

    slices: Mapping[tuple[str, Shape], Slice]
    floor: Floor


Figure = Callable[[Round], float]  # raises KeyError where a target of it was not measured


@dataclass(frozen=True)
class Goal:
    """A figure and its limit, which is either the least or the most."""

    text: str
    figure: Figure
    at_least: float = float("-inf")
    at_most: float = float("inf")


@dataclass(frozen=True)
class Verdict:
    """One line for a person, and whether its goal was missed."""

    line: str
    short: bool


def rate(name: str, shape: Shape) -> Figure:
    """Answers a second."""
    return lambda measured: measured.slices[name, shape].rate


def added(name: str) -> Figure:
    """Milliseconds at the median that a gateway adds to a completion on one connection."""
    return lambda measured: measured.slices[name, WHOLE_1].p50_ms - measured.slices[DIRECT, WHOLE_1].p50_ms


def added_first(name: str) -> Figure:
    """Milliseconds at the median that a gateway adds to the first chunk of a stream."""
    return lambda measured: (
        measured.slices[name, STREAM_1].first_p50_ms - measured.slices[DIRECT, STREAM_1].first_p50_ms
    )


def cpu(name: str, shape: Shape) -> Figure:
    """Microseconds of CPU that the gateway's process takes for one answer."""
    return lambda measured: measured.slices[name, shape].cpu_us["gateway"]


def floor(measured: Round) -> float:
    """Milliseconds that a governed completion adds where each of its round trips has nothing in it."""
    return measured.floor.governed_ms + added(BARE)(measured)


def times(one: Figure, other: Figure) -> Figure:
    """How many times as much."""
    return lambda measured: one(measured) / other(measured)


GOALS = (
    Goal("completions/s at 16, times LiteLLM's", times(rate(OURS, WHOLE_16), rate(LITELLM, WHOLE_16)), at_least=15),
    Goal("completions/s at 64, times LiteLLM's", times(rate(OURS, WHOLE_64), rate(LITELLM, WHOLE_64)), at_least=25),
    Goal("completions/s at 16, times Portkey's", times(rate(OURS, WHOLE_16), rate(PORTKEY, WHOLE_16)), at_least=2),
    Goal("completions/s at 64, times Portkey's", times(rate(OURS, WHOLE_64), rate(PORTKEY, WHOLE_64)), at_least=3),
    Goal("added p50 at 1, times its floor", times(added(OURS), floor), at_most=1.5),
    Goal("added p50 at 1, times LiteLLM's", times(added(OURS), added(LITELLM)), at_most=1),
    Goal("streams/s at 16, times Portkey's", times(rate(OURS, STREAM_16), rate(PORTKEY, STREAM_16)), at_least=5),
    Goal("streams/s at 16, times LiteLLM's", times(rate(OURS, STREAM_16), rate(LITELLM, STREAM_16)), at_least=50),
    Goal("added to the first chunk at 1, times the floor", times(added_first(OURS), floor), at_most=1.5),
    Goal("added to the first chunk at 1, times LiteLLM's", times(added_first(OURS), added_first(LITELLM)), at_most=1),
    Goal("added to the first chunk at 1, times Portkey's", times(added_first(OURS), added_first(PORTKEY)), at_most=1),
    Goal(
        "CPU a completion at 16, times the pass-through's", times(cpu(OURS, WHOLE_16), cpu(BARE, WHOLE_16)), at_most=2
    ),
)


def judge(goal: Goal, rounds: Sequence[Round]) -> Verdict:
    """Compare the median of all rounds with the limit."""
    try:
        found = [goal.figure(measured) for measured in rounds]
    except KeyError:
        return Verdict(f"-     {goal.text:<50} not measured", short=False)
    short = not goal.at_least <= median(found) <= goal.at_most
    wanted = f"at most {goal.at_most:g}" if goal.at_most < float("inf") else f"at least {goal.at_least:g}"
    spread = f"({min(found):.2f} to {max(found):.2f})"
    word = "SHORT" if short else "PASS "
    return Verdict(f"{word} {goal.text:<50} {median(found):7.2f} {spread:<20} wanted {wanted}", short)


def judge_memory(samples_mb: Sequence[float], requests_each: int) -> list[Verdict]:
    """Compare the last sample with the limit, and how much the second half grows with what would be kept for ever."""
    half = samples_mb[len(samples_mb) // 2 :]
    grown = linear_regression(range(len(half)), half).slope * 2**20 / requests_each
    lines = (
        (f"memory after {requests_each * len(samples_mb):,} completions, MB", samples_mb[-1], MEMORY_MB_MAX),
        ("growth in their second half, bytes a completion", grown, GROWTH_BYTES_MAX),
    )
    return [
        Verdict(
            f"{'SHORT' if found > most else 'PASS '} {text:<50} {found:7.2f} {'':<20} wanted at most {most}",
            found > most,
        )
        for text, found, most in lines
    ]
