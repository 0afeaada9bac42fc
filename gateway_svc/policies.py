"""Rules about what agents may ask of models, and their merge: the most restrictive of all levels wins. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

from gateway_svc.globs import EVERYTHING, permit

PER_MINUTE_MAX = 10**11  # counted in units of a minute's milliseconds, it stays exact in Valkey's doubles

Lists: TypeAlias = frozenset[frozenset[str]]  # each must take a name in; none: every name is allowed


@dataclass(frozen=True, slots=True)
class Rate:
    """What all agents at and below a target may ask together in any 60 seconds; None: as much as they like."""

    target_id: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule, or what several rules together come to; `ANYTHING` restricts nothing.

    Lists of names stay apart when rules are merged and all of them must allow a name, so that no merge can widen what
    one of them allows, whatever globs they hold.
    """

    allowed_models: Lists = frozenset()
    allowed_tools: Lists = frozenset()
    allowed_endpoints: Lists = frozenset()
    allowed_providers: Lists = frozenset()
    max_tokens_per_request: int | None = None
    max_cost_micros_per_request: int | None = None
    cut_abandoned_streams: bool = False
    rates: tuple[Rate, ...] = ()

    def allows(self, model: str) -> bool:
        """Return whether a model may be asked for."""
        return not self.allowed_models or permit(self.allowed_models, model)

    def allows_tool(self, name: str) -> bool:
        """Return whether a tool may be offered to a model or called."""
        return not self.allowed_tools or permit(self.allowed_tools, name)

    def allows_endpoint(self, name: str) -> bool:
        """Return whether an endpoint may be asked, such as chat.completions."""
        return not self.allowed_endpoints or permit(self.allowed_endpoints, name)

    def allows_provider(self, name: str) -> bool:
        """Return whether a request may go to a provider."""
        return not self.allowed_providers or permit(self.allowed_providers, name)

    @property
    def requests_per_minute(self) -> int | None:
        """Return the tightest of the request rates."""
        return min(
            (rate.requests_per_minute for rate in self.rates if rate.requests_per_minute is not None), default=None
        )

    @property
    def tokens_per_minute(self) -> int | None:
        """Return the tightest of the token rates."""
        return min((rate.tokens_per_minute for rate in self.rates if rate.tokens_per_minute is not None), default=None)


ANYTHING = Policy()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a policy limits; None: no limit of this kind."""

    allowed_models: tuple[str, ...] | None = None
    allowed_tools: tuple[str, ...] | None = None
    allowed_endpoints: tuple[str, ...] | None = None
    allowed_providers: tuple[str, ...] | None = None
    max_tokens_per_request: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_cost_micros_per_request: int | None = None
    cut_abandoned_streams: bool = False


def policy(terms: Terms, target_id: str) -> Policy:
    """Build the rule that terms on a target are, in the form that `merge` keeps."""
    rate = Rate(target_id, terms.requests_per_minute, terms.tokens_per_minute)
    limited = rate.requests_per_minute is not None or rate.tokens_per_minute is not None
    return Policy(
        allowed_models=_lists(terms.allowed_models),
        allowed_tools=_lists(terms.allowed_tools),
        allowed_endpoints=_lists(terms.allowed_endpoints),
        allowed_providers=_lists(terms.allowed_providers),
        max_tokens_per_request=terms.max_tokens_per_request,
        max_cost_micros_per_request=terms.max_cost_micros_per_request,
        cut_abandoned_streams=terms.cut_abandoned_streams,
        rates=(rate,) if limited else (),
    )


def merge(policies: Iterable[Policy]) -> Policy:
    """Return what all of `policies` allow: associative, commutative, and never wider than any of them."""
    return reduce(_merge_two, policies, ANYTHING)


def _lists(names: Iterable[str] | None) -> Lists:
    """Return no list for one that allows everything, so that it costs nothing to ask."""
    if names is None:
        return frozenset()
    patterns = frozenset(names)
    return frozenset() if EVERYTHING in patterns else frozenset({patterns})


def _merge_two(one: Policy, other: Policy) -> Policy:
    return Policy(
        allowed_models=one.allowed_models | other.allowed_models,
        allowed_tools=one.allowed_tools | other.allowed_tools,
        allowed_endpoints=one.allowed_endpoints | other.allowed_endpoints,
        allowed_providers=one.allowed_providers | other.allowed_providers,
        max_tokens_per_request=_least(one.max_tokens_per_request, other.max_tokens_per_request),
        max_cost_micros_per_request=_least(one.max_cost_micros_per_request, other.max_cost_micros_per_request),
        cut_abandoned_streams=one.cut_abandoned_streams or other.cut_abandoned_streams,
        rates=_all_rates(one.rates, other.rates),
    )


def _all_rates(one: tuple[Rate, ...], other: tuple[Rate, ...]) -> tuple[Rate, ...]:
    """Keep one rate for each target: each is counted by itself."""
    rates: dict[str, Rate] = {rate.target_id: rate for rate in one}
    for rate in other:
        before = rates.get(rate.target_id)
        rates[rate.target_id] = rate if before is None else _tightest(before, rate)
    return tuple(rates[target_id] for target_id in sorted(rates))


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
