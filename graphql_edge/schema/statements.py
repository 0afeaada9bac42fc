"""What accounts had as of a moment, what moved them, and whether the books are right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import invalid
from graphql_edge.schema.pages import PageInfo, size_of
from graphql_edge.schema.scalars import Int64, Micros, stamp_of, time_of
from mandate.ledger.v1 import statements_pb2 as pb

CHECK_POINTS = 3_000  # more than half of what a document may cost: it asks for one check at most


@strawberry.type
class Balance:
    """What an account had settled with every transfer up to `seq`; a budget's falls below zero as it is used."""

    account: str
    settled_micros: Micros
    seq: Int64


@strawberry.type
class StatementLine:
    """What one transfer did to the account, above 0: into it; and the account's balance after it."""

    seq: Int64
    kind: str
    request_id: str
    amount_micros: Micros
    balance_micros: Micros
    actor: str
    reason: str
    time: datetime


@strawberry.type
class Statement:
    """One page of a period's lines, and the balances before and after the whole period."""

    opening_micros: Micros
    closing_micros: Micros
    lines: list[StatementLine]
    page_info: PageInfo


@strawberry.type
class Discrepancy:
    """One thing in the books that is not as it must be."""

    what: str
    subject: str
    expected: str
    found: str


@strawberry.type
class BooksCheck:
    """What is wrong, at most 1,000 things; and the last transfer, usage row and audit entry that were looked at."""

    discrepancies: list[Discrepancy]
    transfer_seq: Int64
    usage_seq: Int64
    audit_seq: Int64


def line_of(message: pb.StatementLine) -> StatementLine:
    """Read a line from the contract's message."""
    return StatementLine(
        seq=Int64(message.seq),
        kind=message.kind,
        request_id=message.request_id,
        amount_micros=Micros(message.amount_micros),
        balance_micros=Micros(message.balance_micros),
        actor=message.actor,
        reason=message.reason,
        time=time_of(message.time),
    )


async def balance(
    operation: Operation, organization_id: str, account: str, time: datetime | None, seq: int | None
) -> Balance:
    """Read a balance as of a moment or a transfer; INVALID_FIELD when both are given."""
    if time is not None and seq is not None:
        raise invalid("seq", "must not be given beside time")
    request = pb.GetBalanceRequest(organization_id=organization_id, account=account)
    if seq is not None:
        request.seq = seq
    if time is not None:
        request.time.CopyFrom(stamp_of("time", time))
    answer = await operation.call(operation.stubs.statements.GetBalance, request)
    return Balance(account=answer.account, settled_micros=Micros(answer.settled_micros), seq=Int64(answer.seq))


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, end exclusive; None: from the first transfer, until now."""

    start_time: datetime | None
    end_time: datetime | None


async def statement(
    operation: Operation, organization_id: str, account: str, period: Period, first: int, after: str | None
) -> Statement:
    """Read one page of an account's lines."""
    request = pb.GetStatementRequest(
        organization_id=organization_id, account=account, page_size=size_of(first), page_token=after or ""
    )
    if period.start_time is not None:
        request.start_time.CopyFrom(stamp_of("startTime", period.start_time))
    if period.end_time is not None:
        request.end_time.CopyFrom(stamp_of("endTime", period.end_time))
    answer = await operation.call(operation.stubs.statements.GetStatement, request)
    token = answer.next_page_token
    return Statement(
        opening_micros=Micros(answer.opening_micros),
        closing_micros=Micros(answer.closing_micros),
        lines=[line_of(line) for line in answer.lines],
        page_info=PageInfo(end_cursor=token or None, has_next_page=bool(token)),
    )


async def books_check(operation: Operation, organization_id: str) -> BooksCheck:
    """Have an organization's books recomputed."""
    answer = await operation.call(
        operation.stubs.statements.VerifyBooks, pb.VerifyBooksRequest(organization_id=organization_id)
    )
    return BooksCheck(
        discrepancies=[
            Discrepancy(what=wrong.what, subject=wrong.subject, expected=wrong.expected, found=wrong.found)
            for wrong in answer.discrepancies
        ],
        transfer_seq=Int64(answer.transfer_seq),
        usage_seq=Int64(answer.usage_seq),
        audit_seq=Int64(answer.audit_seq),
    )
