"""Domain to protobuf and back, for policies, routes and charges."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gateway_svc.holds import Charged, Grant, Place, Refusal, Refused, Report
from gateway_svc.policies import Terms
from gateway_svc.routing import Limits, Target
from gateway_svc.store.policies import StoredPolicy
from gateway_svc.store.routes import StoredRoute
from gateway_svc.verdicts import Asked, Decider, Explanation
from mandate.gateway.v1 import policies_pb2, routes_pb2
from mandate.ledger.v1 import charges_pb2
from mesh import faults
from mesh.telemetry import traces

WAIT_MS_MAX = 250

REFUSALS = {
    charges_pb2.HOLD_REFUSAL_EXHAUSTED: Refusal.EXHAUSTED,
    charges_pb2.HOLD_REFUSAL_IN_FLIGHT: Refusal.IN_FLIGHT,
    charges_pb2.HOLD_REFUSAL_DISABLED: Refusal.DISABLED,
    charges_pb2.HOLD_REFUSAL_VOIDED: Refusal.VOIDED,
    charges_pb2.HOLD_REFUSAL_COST_LIMIT: Refusal.COST_LIMIT,
}


def policy_message(stored: StoredPolicy) -> policies_pb2.Policy:
    """Pack a policy; a limit that it does not set is absent."""
    terms = stored.terms
    return policies_pb2.Policy(
        id=stored.id,
        organization_id=stored.organization_id,
        target_id=stored.target_id,
        name=stored.name,
        allowed_models=None
        if terms.allowed_models is None
        else policies_pb2.ModelList(models=list(terms.allowed_models)),
        allowed_tools=_name_list(terms.allowed_tools),
        allowed_endpoints=_name_list(terms.allowed_endpoints),
        allowed_providers=_name_list(terms.allowed_providers),
        max_tokens_per_request=terms.max_tokens_per_request,
        requests_per_minute=terms.requests_per_minute,
        tokens_per_minute=terms.tokens_per_minute,
        max_cost_micros_per_request=terms.max_cost_micros_per_request,
        cut_abandoned_streams=terms.cut_abandoned_streams,
        create_time=_timestamp(stored.created_at),
        update_time=None if stored.updated_at is None else _timestamp(stored.updated_at),
        remove_time=None if stored.removed_at is None else _timestamp(stored.removed_at),
    )


def terms_of(message: policies_pb2.CreatePolicyRequest | policies_pb2.Policy) -> Terms:
    """Read the limits that a message sets."""
    return Terms(
        allowed_models=tuple(message.allowed_models.models) if message.HasField("allowed_models") else None,
        allowed_tools=tuple(message.allowed_tools.names) if message.HasField("allowed_tools") else None,
        allowed_endpoints=tuple(message.allowed_endpoints.names) if message.HasField("allowed_endpoints") else None,
        allowed_providers=tuple(message.allowed_providers.names) if message.HasField("allowed_providers") else None,
        max_tokens_per_request=message.max_tokens_per_request if message.HasField("max_tokens_per_request") else None,
        requests_per_minute=message.requests_per_minute if message.HasField("requests_per_minute") else None,
        tokens_per_minute=message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        max_cost_micros_per_request=message.max_cost_micros_per_request
        if message.HasField("max_cost_micros_per_request")
        else None,
        cut_abandoned_streams=message.cut_abandoned_streams,
    )


def asked_of(message: policies_pb2.AskedOfPolicies) -> Asked:
    """Read the description of a request."""
    return Asked(
        model=message.model,
        provider=message.provider,
        endpoint=message.endpoint,
        tools=tuple(message.tools),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        input_tokens=message.input_tokens,
    )


def explanation_message(explanation: Explanation) -> policies_pb2.ExplainPoliciesResponse:
    """Pack what policies come to for one request."""
    return policies_pb2.ExplainPoliciesResponse(
        decisions=[
            policies_pb2.PolicyDecision(
                limit=decision.limit, value=decision.value, deciders=_deciders(decision.deciders)
            )
            for decision in explanation.decisions
        ],
        refusals=[
            policies_pb2.PolicyRefusal(
                reason=refusal.error.reason, name=refusal.name, deciders=_deciders(refusal.deciders)
            )
            for refusal in explanation.refusals
        ],
        output_tokens_max=explanation.output_tokens_max,
    )


def route_message(stored: StoredRoute) -> routes_pb2.Route:
    """Pack a route with its targets."""
    return routes_pb2.Route(
        id=stored.id,
        organization_id=stored.organization_id,
        alias=stored.alias,
        targets=[_target_message(target) for target in stored.targets],
        create_time=_timestamp(stored.created_at),
        update_time=_timestamp(stored.updated_at),
        remove_time=None if stored.removed_at is None else _timestamp(stored.removed_at),
    )


def targets_of(messages: Iterable[routes_pb2.RouteTarget]) -> list[Target]:
    """Read the targets that a request names; of limits that are there in part only, the other is 0."""
    return [
        Target(
            provider=message.provider,
            model=message.model,
            weight=message.weight if message.HasField("weight") else 1,
            tier=message.tier,
            limits=Limits(message.context_tokens, message.output_tokens_max)
            if message.HasField("context_tokens") or message.HasField("output_tokens_max")
            else None,
        )
        for message in messages
    ]


def place_message(place: Place) -> charges_pb2.PlaceHold:
    """Pack a wanted hold."""
    return charges_pb2.PlaceHold(
        request_id=place.request_id,
        agent_id=place.agent_id,
        path_version=place.path_version,
        routes=[charges_pb2.Route(provider=route.provider, model=route.model) for route in place.routes],
        input_tokens_max=place.input_tokens_max,
        output_tokens_wanted=place.output_tokens_wanted,
        output_tokens_min=place.output_tokens_min,
        choices=place.choices,
        wait_ms_max=WAIT_MS_MAX,
        api_key_id=place.api_key_id,
        end_user=place.end_user,
        cost_max_micros=place.cost_max_micros,
        traceparent=traces.traceparent() or "",
    )


def settle_message(report: Report) -> charges_pb2.SettleHold:
    """Pack a settle."""
    usage = report.settlement.usage
    return charges_pb2.SettleHold(
        request_id=report.request_id,
        agent_id=report.agent_id,
        route=report.route,
        usage=charges_pb2.TokenUsage(
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        estimated=report.settlement.estimated,
        outcome=report.settlement.outcome,
        http_status=report.settlement.http_status,
        latency_ms=report.latency_ms,
        overhead_ms=report.overhead_ms,
        first_token_ms=report.first_token_ms,
        streamed=report.streamed,
        usage_source=report.settlement.source,
        attempts=report.attempts,
        dialect=report.dialect,
        traceparent=traces.traceparent() or "",
    )


def hold_outcome(answer: charges_pb2.HoldAnswer, place: Place, holder_id: str) -> Grant | Refused:
    """Read the answer to a hold; raise the error that it carries."""
    match answer.WhichOneof("outcome"):
        case "granted":
            granted = answer.granted
            return Grant(place.request_id, place.agent_id, holder_id, granted.output_tokens, granted.ceiling_micros)
        case "refused":
            refused = answer.refused
            refusal = REFUSALS.get(refused.refusal, Refusal.EXHAUSTED)
            return Refused(refusal, refused.account_id, refused.short_micros)
        case _:
            raise faults.from_fault(answer.fault)


def settle_outcome(answer: charges_pb2.SettleAnswer) -> Charged:
    """Read the answer to a settle; raise the error that it carries."""
    if answer.WhichOneof("outcome") != "settled":
        raise faults.from_fault(answer.fault)
    return Charged(answer.settled.charged_micros, answer.settled.balance_micros)


def _target_message(target: Target) -> routes_pb2.RouteTarget:
    limits = target.limits
    return routes_pb2.RouteTarget(
        provider=target.provider,
        model=target.model,
        weight=target.weight,
        tier=target.tier,
        context_tokens=None if limits is None else limits.context_tokens,
        output_tokens_max=None if limits is None else limits.output_tokens_max,
    )


def _name_list(names: tuple[str, ...] | None) -> policies_pb2.NameList | None:
    return None if names is None else policies_pb2.NameList(names=list(names))


def _deciders(deciders: tuple[Decider, ...]) -> list[policies_pb2.PolicyDecider]:
    return [
        policies_pb2.PolicyDecider(target_id=decider.target_id, policy_id=decider.policy_id, names=list(decider.names))
        for decider in deciders
    ]


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
