"""The ledger's values to protobuf and back, for what more than one method needs."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc.holds import (
    Differs,
    Ended,
    Granted,
    Lapsed,
    NoHold,
    Placed,
    Refused,
    Settled,
    SettleOutcome,
    StalePath,
    Voided,
    VoidOutcome,
)
from ledger_svc.pricing import Price, Usage
from mandate.ledger.v1 import budgets_pb2, charges_pb2, prices_pb2, wallets_pb2
from mesh import faults
from mesh.db import Row
from mesh.errors import Aborted, AlreadyExists, FailedPrecondition, MeshError, NotFound, Unavailable

REFUSALS = {
    2: charges_pb2.HOLD_REFUSAL_EXHAUSTED,
    3: charges_pb2.HOLD_REFUSAL_IN_FLIGHT,
    4: charges_pb2.HOLD_REFUSAL_DISABLED,
    5: charges_pb2.HOLD_REFUSAL_VOIDED,
}
PERIODS = {
    budgets_pb2.PERIOD_DAILY: "daily",
    budgets_pb2.PERIOD_MONTHLY: "monthly",
    budgets_pb2.PERIOD_TOTAL: "total",
}
PERIOD_NUMBERS = {name: number for number, name in PERIODS.items()}


def differs(field: str) -> AlreadyExists:
    """Build the error for a key that was used for another request."""
    return AlreadyExists("REQUEST_ID_REUSED", f"request_id was used with another {field}", field=field)


def hold_answer(request_id: str, placed: Placed | MeshError) -> charges_pb2.HoldAnswer:
    """Pack the answer to a request for a hold."""
    answer = charges_pb2.HoldAnswer(request_id=request_id)
    match placed:
        case Granted(output_tokens=tokens, ceiling_micros=ceiling, replayed=replayed):
            answer.granted.CopyFrom(
                charges_pb2.HoldGranted(output_tokens=tokens, ceiling_micros=ceiling, replayed=replayed)
            )
        case Refused(refusal=refusal, account_id=account, target_id=target, short_micros=short, replayed=replayed):
            answer.refused.CopyFrom(
                charges_pb2.HoldRefused(
                    refusal=REFUSALS[refusal],
                    account_id=account,
                    target_id=target,
                    short_micros=short,
                    replayed=replayed,
                )
            )
        case StalePath():
            answer.fault.CopyFrom(faults.to_fault(Aborted("STALE_PATH", "the agent's path has changed: read it again")))
        case Lapsed():
            answer.fault.CopyFrom(faults.to_fault(Unavailable("LEASE_LAPSED", "the holder's lease has lapsed")))
        case Differs(field=field):
            answer.fault.CopyFrom(faults.to_fault(differs(field)))
        case MeshError():
            answer.fault.CopyFrom(faults.to_fault(placed))
    return answer


def settle_answer(request_id: str, outcome: SettleOutcome | MeshError) -> charges_pb2.SettleAnswer:
    """Pack the answer to a settlement."""
    answer = charges_pb2.SettleAnswer(request_id=request_id)
    match outcome:
        case Settled(charged_micros=charged, balance_micros=balance, breach_micros=breach, replayed=replayed):
            answer.settled.CopyFrom(
                charges_pb2.Settled(
                    charged_micros=charged, balance_micros=balance, breach_micros=breach, replayed=replayed
                )
            )
        case NoHold():
            answer.fault.CopyFrom(faults.to_fault(NotFound("HOLD_NOT_FOUND", "no such hold was granted")))
        case Ended(how=how):
            answer.fault.CopyFrom(faults.to_fault(FailedPrecondition("HOLD_ENDED", f"the hold was {how}", how=how)))
        case Differs(field=field):
            answer.fault.CopyFrom(faults.to_fault(differs(field)))
        case MeshError():
            answer.fault.CopyFrom(faults.to_fault(outcome))
    return answer


def void_answer(request_id: str, outcome: VoidOutcome | MeshError) -> charges_pb2.VoidAnswer:
    """Pack the answer to a void."""
    answer = charges_pb2.VoidAnswer(request_id=request_id)
    match outcome:
        case Voided(replayed=replayed):
            answer.voided.CopyFrom(charges_pb2.Voided(replayed=replayed))
        case Ended(how=how):
            answer.fault.CopyFrom(faults.to_fault(FailedPrecondition("HOLD_ENDED", f"the hold was {how}", how=how)))
        case MeshError():
            answer.fault.CopyFrom(faults.to_fault(outcome))
    return answer


def usage_of(message: charges_pb2.TokenUsage) -> Usage:
    """Read token counts."""
    return Usage(
        input_tokens=message.input_tokens,
        cached_input_tokens=message.cached_input_tokens,
        cache_write_tokens=message.cache_write_tokens,
        output_tokens=message.output_tokens,
        reasoning_tokens=message.reasoning_tokens,
    )


def price(value: Price) -> prices_pb2.Price:
    """Pack a price."""
    return prices_pb2.Price(
        id=value.id,
        provider=value.provider,
        model=value.model,
        input_micros_per_mtok=value.input_rate,
        cached_input_micros_per_mtok=value.cached_input_rate,
        cache_write_micros_per_mtok=value.cache_write_rate,
        output_micros_per_mtok=value.output_rate,
        reasoning_micros_per_mtok=value.reasoning_rate,
        request_micros=value.request_micros,
        context_tokens=value.context_tokens,
        output_tokens_max=value.output_tokens_max,
        source=value.source,
        source_date=value.source_date,
    )


def transfer(organization_id: str, row: Row) -> wallets_pb2.Transfer:
    """Pack a transfer."""
    return wallets_pb2.Transfer(
        id=f"{organization_id}/{row['seq']}",
        organization_id=organization_id,
        kind=row["kind"],
        debit_account=row["debit"],
        credit_account=row["credit"],
        amount_micros=row["amount_micros"],
        request_id=row["key"],
        actor=row["actor"],
        reason=row["reason"],
        time=stamp(row["posted_at"]),
        seq=row["seq"],
    )


def usage(organization_id: str, row: Row) -> wallets_pb2.Usage:
    """Pack a completion."""
    path: list[str] = [*row["path"], "", "", ""]
    same = {
        name: row[name]
        for name in (
            "request_id",
            "agent_id",
            "api_key_id",
            "end_user",
            "provider",
            "model",
            "price_id",
            "input_tokens",
            "cached_input_tokens",
            "cache_write_tokens",
            "output_tokens",
            "reasoning_tokens",
            "charged_micros",
            "ceiling_micros",
            "breach_micros",
            "estimated",
            "outcome",
            "http_status",
            "latency_ms",
            "overhead_ms",
            "first_token_ms",
            "streamed",
        )
    }
    return wallets_pb2.Usage(
        organization_id=organization_id,
        workspace_id=path[1],
        agent_group_id=path[2],
        time=stamp(row["used_at"]),
        **same,
    )


def budget(row: Row) -> budgets_pb2.Budget:
    """Pack a budget with its current window."""
    return budgets_pb2.Budget(
        id=row["id"],
        organization_id=row["organization_id"],
        target_id=row["target_id"],
        period=PERIOD_NUMBERS[row["period"]],
        limit_micros=row["limit_micros"],
        auto_disable=row["auto_disable"],
        disabled=row["disabled"],
        settled_micros=row["settled_micros"],
        held_micros=row["held_micros"],
        window_start_time=stamp(row["window_start"]),
        create_time=stamp(row["created_at"]),
    )


def stamp(at: datetime) -> Timestamp:
    """Pack a moment."""
    message = Timestamp()
    message.FromDatetime(at)
    return message
