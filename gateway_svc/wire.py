"""Domain to protobuf and back, for policies and for charges."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gateway_svc.holds import Charged, Grant, Place, Refusal, Refused, Report
from gateway_svc.policies import Terms
from gateway_svc.store.policies import StoredPolicy
from mandate.gateway.v1 import policies_pb2
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
        max_tokens_per_request=terms.max_tokens_per_request,
        requests_per_minute=terms.requests_per_minute,
        tokens_per_minute=terms.tokens_per_minute,
        create_time=_timestamp(stored.created_at),
        remove_time=None if stored.removed_at is None else _timestamp(stored.removed_at),
    )


def terms_of(request: policies_pb2.CreatePolicyRequest) -> Terms:
    """Read the limits that a request sets."""
    return Terms(
        allowed_models=tuple(request.allowed_models.models) if request.HasField("allowed_models") else None,
        max_tokens_per_request=request.max_tokens_per_request if request.HasField("max_tokens_per_request") else None,
        requests_per_minute=request.requests_per_minute if request.HasField("requests_per_minute") else None,
        tokens_per_minute=request.tokens_per_minute if request.HasField("tokens_per_minute") else None,
    )


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
        usage_source=report.usage_source or "",
        attempts=report.attempts,
        dialect=report.dialect or "",
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


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
