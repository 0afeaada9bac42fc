"""What a mock model is ordered to do, read from `x-mock`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import invalid

COMPLETION_TOKENS = 16
TOKENS_MAX = 100_000
LATENCY_MS_MAX = 120_000
EVENTS_MAX = 1_000
EVENT_MS_MAX = 10_000
DIGITS_MAX = 9
LAST_STATUS = 599
USAGES = ("", "missing", "zero", "double", "negative", "text")
NUMBERS = {
    "latency_ms": (0, LATENCY_MS_MAX),
    "status": (200, LAST_STATUS),
    "events": (0, EVENTS_MAX),
    "event_ms": (0, EVENT_MS_MAX),
    "tokens": (COMPLETION_TOKENS, TOKENS_MAX),
    "cached": (0, TOKENS_MAX),
    "reasoning": (0, TOKENS_MAX),
    "refuse": (0, 1),
}


@dataclass(frozen=True, slots=True)
class Orders:
    """How a mock model is to behave; `events` 0 for one a token, `refuse` for a call that never gets through."""

    latency_ms: int = 0
    status: int = 200
    usage: str = ""
    events: int = 0
    event_ms: int = 0
    die_after: int | None = None
    tokens: int = COMPLETION_TOKENS
    cached: int = 0
    reasoning: int = 0
    refuse: bool = False


def orders_of(header: str) -> Orders:
    """Read `x-mock`; InvalidArgument names the part that is wrong."""
    if not header:
        return Orders()
    given: dict[str, str] = {}
    for part in filter(str.strip, header.split(";")):
        name, _, value = part.partition("=")
        given[name.strip()] = value.strip()
    if unknown := sorted(set(given) - {*NUMBERS, "usage", "die_after"}):
        raise invalid("x-mock", f"knows no {unknown[0][:40]!r}")
    usage = given.get("usage", "")
    if usage not in USAGES:
        raise invalid("x-mock", f"usage must be one of {', '.join(filter(None, USAGES))}")
    numbers = {name: _number(given, name, *bounds) for name, bounds in NUMBERS.items()}
    return Orders(
        latency_ms=numbers["latency_ms"],
        status=numbers["status"],
        usage=usage,
        events=numbers["events"],
        event_ms=numbers["event_ms"],
        die_after=_number(given, "die_after", 0, EVENTS_MAX) if "die_after" in given else None,
        tokens=max(1, numbers["tokens"]),
        cached=numbers["cached"],
        reasoning=numbers["reasoning"],
        refuse=numbers["refuse"] == 1,
    )


def _number(given: dict[str, str], name: str, default: int, maximum: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or len(text) > DIGITS_MAX or int(text) > maximum:
        raise invalid("x-mock", f"{name} must be a whole number up to {maximum}")
    return int(text)
