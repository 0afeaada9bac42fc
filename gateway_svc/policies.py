"""Rules about what agents may ask of models, and their merge: the most restrictive of all levels wins. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

PER_MINUTE_MAX = 10**11  # counted in units of a minute's milliseconds, it stays exact in Valkey's doubles


@dataclass(frozen=True, slots=True)
class Rate:
    """What all agents at and below a target may ask together in a minute; None: as much as they like."""

    target_id: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule, or what several rules together come to; `ANYTHING` restricts nothing.

    `allowed_models` holds names and prefixes that end in `*`, none of which covers another; None: every model.
    """

    allowed_models: frozenset[str] | None = None
    max_tokens_per_request: int | None = None
    rates: tuple[Rate, ...] = ()

    def allows(self, model: str) -> bool:
        """Return whether a model may be asked for."""
        return self.allowed_models is None or any(covers(pattern, model) for pattern in self.allowed_models)

    @property
    def tokens_per_minute(self) -> int | None:
        """Return the tightest of the token rates."""
        return min((rate.tokens_per_minute for rate in self.rates if rate.tokens_per_minute is not None), default=None)


ANYTHING = Policy()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a policy limits; None: no limit of this kind."""

    allowed_models: tuple[str, ...] | None
    max_tokens_per_request: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


def policy(models: Iterable[str] | None, max_tokens_per_request: int | None, rate: Rate) -> Policy:
    """Build one rule in the form that `merge` keeps."""
    limited = rate.requests_per_minute is not None or rate.tokens_per_minute is not None
    allowed = None if models is None else _narrowest(models)
    return Policy(allowed, max_tokens_per_request, (rate,) if limited else ())


def merge(policies: Iterable[Policy]) -> Policy:
    """Return what all of `policies` allow: associative, commutative, and never wider than any of them."""
    return reduce(_merge_two, policies, ANYTHING)


def covers(pattern: str, name: str) -> bool:
    """Return whether a pattern takes in a model's name, or everything that another pattern takes in."""
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return pattern == name


def _merge_two(one: Policy, other: Policy) -> Policy:
    rates: dict[str, Rate] = {rate.target_id: rate for rate in one.rates}
    for rate in other.rates:
        before = rates.get(rate.target_id)
        rates[rate.target_id] = rate if before is None else _tightest(before, rate)
    return Policy(
        _both_models(one.allowed_models, other.allowed_models),
        _least(one.max_tokens_per_request, other.max_tokens_per_request),
        tuple(rates[target_id] for target_id in sorted(rates)),
    )


def _both_models(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return _narrowest(
        [a for a in one if any(covers(b, a) for b in other)] + [b for b in other if any(covers(a, b) for a in one)]
    )


def _narrowest(patterns: Iterable[str]) -> frozenset[str]:
    """Drop every pattern that another one covers, so that equal sets look equal."""
    every = set(patterns)
    return frozenset(name for name in every if not any(other != name and covers(other, name) for other in every))


def _tightest(one: Rate, other: Rate) -> Rate:
    return Rate(
        one.target_id,
        _least(one.requests_per_minute, other.requests_per_minute),
        _least(one.tokens_per_minute, other.tokens_per_minute),
    )


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
