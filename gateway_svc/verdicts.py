"""What policies say of one request: the errors that refuse it, and which of its levels decide what. Pure.

Rates and what a request may cost depend on more than policies: here they are only told, Valkey and the ledger judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway_svc.policies import Lists, Policy, merge
from mesh.errors import PermissionDenied

LISTS: dict[str, tuple[Callable[[Policy], Lists], Callable[[Policy, str], bool]]] = {
    "allowed_models": (lambda policy: policy.allowed_models, Policy.allows),
    "allowed_tools": (lambda policy: policy.allowed_tools, Policy.allows_tool),
    "allowed_endpoints": (lambda policy: policy.allowed_endpoints, Policy.allows_endpoint),
    "allowed_providers": (lambda policy: policy.allowed_providers, Policy.allows_provider),
}
NUMBERS: tuple[tuple[str, Callable[[Policy], int | None]], ...] = (
    ("max_tokens_per_request", lambda policy: policy.max_tokens_per_request),
    ("requests_per_minute", lambda policy: policy.requests_per_minute),
    ("tokens_per_minute", lambda policy: policy.tokens_per_minute),
    ("max_cost_micros_per_request", lambda policy: policy.max_cost_micros_per_request),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as policies see it; what is empty or None is not judged."""

    model: str = ""
    provider: str = ""
    endpoint: str = ""
    tools: tuple[str, ...] = ()
    max_tokens: int | None = None
    input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One policy of a path and where it stands; one that is only proposed has no id."""

    target_id: str
    policy_id: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Decider:
    """A policy that decides; `names` are those of its list, where a decision is about a list."""

    target_id: str
    policy_id: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Which policies decide a limit, by the name of its field; `value` is the number in force."""

    limit: str
    value: int | None
    deciders: tuple[Decider, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A name that policies refuse, with the error that the gateway answers."""

    name: str
    error: PermissionDenied
    deciders: tuple[Decider, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the policies of a path come to for one request; no output limit leaves it to the model."""

    decisions: tuple[Decision, ...]
    refusals: tuple[Verdict, ...]
    output_tokens_max: int | None


def refusals(policy: Policy, asked: Asked) -> Iterator[tuple[str, str, PermissionDenied]]:
    """Give each list that refuses a request, the name that it refuses, and the error, in the gateway's order."""
    if asked.endpoint and not policy.allows_endpoint(asked.endpoint):
        text = f"a policy does not allow the endpoint {asked.endpoint}"
        yield "allowed_endpoints", asked.endpoint, PermissionDenied("ENDPOINT_NOT_ALLOWED", text)
    if asked.model and not policy.allows(asked.model):
        text = f"a policy does not allow {asked.model}"
        yield "allowed_models", asked.model, PermissionDenied("MODEL_NOT_ALLOWED", text, field="model")
    if asked.provider and not policy.allows_provider(asked.provider):
        text = f"a policy does not allow the provider {asked.provider}"
        yield "allowed_providers", asked.provider, PermissionDenied("PROVIDER_NOT_ALLOWED", text, field="model")
    if not policy.allowed_tools:
        return
    for tool in asked.tools:
        if not policy.allows_tool(tool):
            text = f"a policy does not allow the tool {tool[:200]}"
            yield "allowed_tools", tool, PermissionDenied("TOOL_NOT_ALLOWED", text, field="tools")


def output_tokens_max(policy: Policy, asked: Asked) -> int | None:
    """Return the most output that a policy leaves a request of one choice, which is at least a token."""
    limits = [policy.max_tokens_per_request, asked.max_tokens]
    if (per_minute := policy.tokens_per_minute) is not None:
        limits.append(max(1, per_minute - asked.input_tokens))
    return min((limit for limit in limits if limit is not None), default=None)


def explain(levels: Sequence[Level], asked: Asked) -> Explanation:
    """Say which of a path's policies decide what becomes of a request."""
    merged = merge(level.policy for level in levels)
    return Explanation(
        decisions=tuple(_decisions(levels, merged)),
        refusals=tuple(
            Verdict(name, error, _refusing(levels, limit, name)) for limit, name, error in refusals(merged, asked)
        ),
        output_tokens_max=output_tokens_max(merged, asked),
    )


def _decisions(levels: Sequence[Level], merged: Policy) -> Iterator[Decision]:
    for limit, (lists_of, _) in LISTS.items():
        listing = tuple(_decider(level, lists_of(level.policy)) for level in levels if lists_of(level.policy))
        if listing:
            yield Decision(limit, None, listing)
    for limit, number_of in NUMBERS:
        least = number_of(merged)
        if least is not None:
            tightest = (_decider(level) for level in levels if number_of(level.policy) == least)
            yield Decision(limit, least, tuple(tightest))
    if merged.cut_abandoned_streams:
        cutting = (_decider(level) for level in levels if level.policy.cut_abandoned_streams)
        yield Decision("cut_abandoned_streams", None, tuple(cutting))


def _refusing(levels: Sequence[Level], limit: str, name: str) -> tuple[Decider, ...]:
    _, allows = LISTS[limit]
    return tuple(_decider(level) for level in levels if not allows(level.policy, name))


def _decider(level: Level, lists: Lists = frozenset()) -> Decider:
    return Decider(level.target_id, level.policy_id, tuple(sorted(name for names in lists for name in names)))
