"""Rate limits of one request: what it asks of each, how they stand afterwards, and what its client is told. Pure.

A limit is a leaky bucket that a minute empties: GCRA in its continuous-state form (ITU-T I.371). A request of
n fills it by n units of a minute's milliseconds, each millisecond takes out as many as the limit is, and a request is
let in where it fits. So a minute's worth may come at once, and in any t ms at most the limit and t / 60,000 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from gateway_svc.policies import PER_MINUTE_MAX, Rate
from mesh.errors import Exhausted

SECOND_MS, MINUTE_MS = 1_000, 60_000
FULL_MINUTES_MAX = 2  # a bucket holds up to two minutes' worth, where a request used more than its bound
PATHS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests or tokens a minute, at and below one target; `key` names its bucket."""

    target_id: str
    kind: str
    per_minute: int
    key: str

    def asked(self, tokens: int) -> int:
        """Return what a request takes."""
        return tokens if self.kind == "tokens" else 1

    def remaining(self, level: int) -> int:
        """Return how many still fit."""
        return max(0, self.per_minute * MINUTE_MS - level) // MINUTE_MS

    def empty_ms(self, level: int) -> int:
        """Return after how many milliseconds nothing is left in the bucket."""
        return min(-(-level // self.per_minute), FULL_MINUTES_MAX * MINUTE_MS)

    def wait_ms(self, level: int, asked: int) -> int:
        """Return after how many milliseconds so many more fit, which are no more than the limit; 0: now."""
        return self.empty_ms(max(0, level + (asked - self.per_minute) * MINUTE_MS))


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request took and when, in milliseconds of Valkey's clock, and each bucket's level afterwards."""

    organization_id: str
    tokens: int
    at_ms: int
    limits: tuple[Limit, ...]
    levels: tuple[int, ...]

    def headers(self) -> dict[str, str]:
        """Return `x-ratelimit-*` as OpenAI has them, for the limits with least room."""
        headers: dict[str, str] = {}
        for kind, (limit, level, remaining) in self._tightest().items():
            headers[f"x-ratelimit-limit-{kind}"] = str(limit.per_minute)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = _duration(limit.empty_ms(level))
        return headers

    def anthropic_headers(self) -> dict[str, str]:
        """Return `anthropic-ratelimit-*`, for the limits with least room."""
        headers: dict[str, str] = {}
        for kind, (limit, level, remaining) in self._tightest().items():
            headers[f"anthropic-ratelimit-{kind}-limit"] = str(limit.per_minute)
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{kind}-reset"] = _instant(self.at_ms + limit.empty_ms(level))
        return headers

    def _tightest(self) -> dict[str, tuple[Limit, int, int]]:
        """Return the first limit of each kind of which least remains, with its level and that."""
        tightest: dict[str, tuple[Limit, int, int]] = {}
        for limit, level in zip(self.limits, self.levels, strict=True):
            remaining = limit.remaining(level)
            known = tightest.get(limit.kind)
            if known is None or remaining < known[2]:
                tightest[limit.kind] = (limit, level, remaining)
        return tightest


NOTHING_TAKEN = Taken("", 0, 0, (), ())


class RateExceeded(Exhausted):
    """A rate limit is reached; `taken` holds the levels as they were found, for the headers."""

    def __init__(self, taken: Taken, retry_after_ms: int, limit: str) -> None:
        text = f"rate limit reached ({limit}); try again in {-(-retry_after_ms // 100) / 10}s"
        super().__init__("RATE_LIMIT_EXCEEDED", text, retry_after_ms=retry_after_ms, limit=limit)
        self.taken = taken


class TokensAboveRate(Exhausted):
    """A request may be more tokens than a limit lets in within a minute: there is no time after which it fits."""

    def __init__(self, tokens: int, limit: Limit) -> None:
        text = f"this asks for {tokens} tokens; the limit is {limit.per_minute} a minute"
        super().__init__("TOKENS_ABOVE_RATE", text, limit=f"tokens per minute of {limit.target_id}")


@lru_cache(PATHS_MAX)
def limits(organization_id: str, rates: tuple[Rate, ...]) -> tuple[Limit, ...]:
    """Return the limits of one path; their keys share the organization's slot of a cluster."""
    return tuple(
        Limit(rate.target_id, kind, min(per_minute, PER_MINUTE_MAX), _key(organization_id, kind, rate.target_id))
        for rate in rates
        for kind, per_minute in (("requests", rate.requests_per_minute), ("tokens", rate.tokens_per_minute))
        if per_minute is not None
    )


def too_large(of_path: Sequence[Limit], tokens: int) -> TokensAboveRate | None:
    """Build the refusal of a request that never fits: it names the least of its limits; None where there is none."""
    above = [limit for limit in of_path if limit.asked(tokens) > limit.per_minute]
    return TokensAboveRate(tokens, min(above, key=lambda limit: limit.per_minute)) if above else None


def exceeded(found: Taken, asked: Sequence[int]) -> RateExceeded:
    """Build the refusal of a request that did not fit: it names the limit that is waited for longest."""
    waits = [
        (limit.wait_ms(level, wanted), limit)
        for limit, level, wanted in zip(found.limits, found.levels, asked, strict=True)
    ]
    wait_ms, limit = max(waits, key=lambda pair: pair[0])
    return RateExceeded(found, max(1, wait_ms), f"{limit.kind} per minute of {limit.target_id}")


def _key(organization_id: str, kind: str, target_id: str) -> str:
    return f"gateway:rate:{{{organization_id}}}:{kind}:{target_id}"


def _duration(ms: int) -> str:
    """Return a time as OpenAI writes it, which is Go's way: 120ms, 1s, 1.5s, 6m0s."""
    if 0 < ms < SECOND_MS:
        return f"{ms}ms"
    if ms % SECOND_MS == 0 and ms < MINUTE_MS:
        return f"{ms // SECOND_MS}s"
    minutes, rest_ms = divmod(ms, MINUTE_MS)
    seconds = f"{rest_ms / SECOND_MS:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _instant(at_ms: int) -> str:
    """Return an instant in RFC 3339, never before the one that is meant."""
    return datetime.fromtimestamp(-(-at_ms // SECOND_MS), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
