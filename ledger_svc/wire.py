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
    Posted,
    Refused,
    Settled,
    SettleOutcome,
    StalePath,
    Voided,
    VoidOutcome,
)
from ledger_svc.store import wallets
from mandate.ledger.v1 import budgets_pb2, charges_pb2, wallets_pb2
from mesh import faults
from mesh.db import Row
from mesh.errors import Aborted, AlreadyExists, Exhausted, FailedPrecondition, MeshError, NotFound, Unavailable

REFUSALS = {
    2: charges_pb2.HOLD_REFUSAL_EXHAUSTED,
    3: charges_pb2.HOLD_REFUSAL_IN_FLIGHT,
    4: charges_pb2.HOLD_REFUSAL_DISABLED,
    5: charges_pb2.HOLD_REFUSAL_VOIDED,
    9: charges_pb2.HOLD_REFUSAL_COST_LIMIT,
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
    match placed:
        case Granted():
            granted = charges_pb2.HoldGranted(
                output_tokens=placed.output_tokens, ceiling_micros=placed.ceiling_micros, replayed=placed.replayed
            )
            return charges_pb2.HoldAnswer(request_id=request_id, granted=granted)
        case Refused():
            refused = charges_pb2.HoldRefused(
                refusal=REFUSALS[placed.refusal],
                account_id=placed.account_id,
                target_id=placed.target_id,
                short_micros=placed.short_micros,
                replayed=placed.replayed,
            )
            return charges_pb2.HoldAnswer(request_id=request_id, refused=refused)
        case StalePath():
            error = Aborted("STALE_PATH", "the agent's path has changed: read it again")
        case Lapsed():
            error = Unavailable("LEASE_LAPSED", "the holder's lease has lapsed")
        case Differs():
            error = differs(placed.field)
        case MeshError():
            error = placed
    return charges_pb2.HoldAnswer(request_id=request_id, fault=faults.to_fault(error))


def settle_answer(request_id: str, outcome: SettleOutcome | MeshError) -> charges_pb2.SettleAnswer:
    """Pack the answer to a settlement."""
    match outcome:
        case Settled():
            return charges_pb2.SettleAnswer(request_id=request_id, settled=_settled(outcome))
        case NoHold():
            error = NotFound("HOLD_NOT_FOUND", "no such hold was granted")
        case Ended():
            error = FailedPrecondition("HOLD_ENDED", f"the hold was {outcome.how}", how=outcome.how)
        case Differs():
            error = differs(outcome.field)
        case MeshError():
            error = outcome
    return charges_pb2.SettleAnswer(request_id=request_id, fault=faults.to_fault(error))


def void_answer(request_id: str, outcome: VoidOutcome | MeshError) -> charges_pb2.VoidAnswer:
    """Pack the answer to a void."""
    answer = charges_pb2.VoidAnswer(request_id=request_id)
    match outcome:
        case Voided(replayed=replayed):
            answer.voided.CopyFrom(charges_pb2.Voided(replayed=replayed))
        case Ended(how=how):
            answer.fault.CopyFrom(faults.to_fault(FailedPrecondition("HOLD_ENDED", f"the hold was {how}", how=how)))
        case Differs(field=field):
            answer.fault.CopyFrom(faults.to_fault(differs(field)))
        case MeshError():
            answer.fault.CopyFrom(faults.to_fault(outcome))
    return answer


def post_answer(request_id: str, outcome: Posted | MeshError) -> charges_pb2.PostChargeAnswer:
    """Pack the answer to a charge."""
    if isinstance(outcome, Settled):
        return charges_pb2.PostChargeAnswer(request_id=request_id, posted=_settled(outcome))
    answer = hold_answer(request_id, outcome)
    if answer.HasField("refused"):
        return charges_pb2.PostChargeAnswer(request_id=request_id, refused=answer.refused)
    return charges_pb2.PostChargeAnswer(request_id=request_id, fault=answer.fault)


def _settled(settled: Settled) -> charges_pb2.Settled:
    return charges_pb2.Settled(
        charged_micros=settled.charged_micros,
        balance_micros=settled.balance_micros,
        breach_micros=settled.breach_micros,
        replayed=settled.replayed,
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


def transfer_answer(request_id: str, posted: wallets.Posted) -> wallets_pb2.TransferAnswer:
    """Pack what became of a transfer by hand."""
    match posted.status:
        case wallets.SHORT:
            error = Exhausted("BALANCE_SHORT", "the wallet has not so much available", account="wallet")
        case wallets.DIFFERS:
            error = differs(posted.field)
        case wallets.CHAIN_FAILED:
            error = Aborted("CHAIN_FAILED", "a transfer that it is linked to failed")
        case _:
            done = wallets_pb2.PostedTransfer(seq=posted.seq or 0, replayed=posted.replayed)
            return wallets_pb2.TransferAnswer(request_id=request_id, posted=done)
    return wallets_pb2.TransferAnswer(request_id=request_id, fault=faults.to_fault(error))


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
            "usage_source",
            "attempts",
            "dialect",
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
