"""What happened, as the ledger keeps it: transfers, entries, usage, uncertain holds."""

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.fields import Info, field
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.prices import Bill, bill
from graphql_edge.schema.scalars import Int64, Micros, time_of
from graphql_edge.schema.wallets import Transfer, transfer_of
from mandate.ledger.v1 import wallets_pb2 as pb


@strawberry.type
class Entry:
    """The line that one transfer makes on one account; above 0: into it. All lines of a transfer sum to zero."""

    transfer_id: strawberry.ID
    seq: Int64
    account: str
    amount_micros: Micros
    kind: str
    request_id: str
    time: datetime


@strawberry.type
class Usage:
    """One completion as it was charged; `requestId` is what the gateway told in x-request-id."""

    request_id: str
    workspace_id: strawberry.ID
    agent_group_id: strawberry.ID
    agent_id: strawberry.ID
    api_key_id: strawberry.ID
    end_user: str
    provider: str
    model: str
    price_id: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charged_micros: Micros
    ceiling_micros: Micros
    estimated: bool
    outcome: str
    http_status: int
    latency_ms: int
    overhead_ms: int
    first_token_ms: int
    streamed: bool
    usage_source: str
    attempts: int
    dialect: str
    time: datetime
    organization_id: strawberry.Private[str]

    @field
    async def bill(self, info: Info) -> Bill | None:
        """Return how the charge came about, line by line."""
        return await bill(info.context, self.organization_id, self.request_id)


@strawberry.type
class UncertainHold:
    """A completion whose gateway vanished while it was in flight; its ceiling waits in the suspense account."""

    request_id: str
    agent_id: strawberry.ID
    holder_id: str
    ceiling_micros: Micros
    hold_time: datetime
    uncertain_time: datetime
    provider: str
    model: str


def entry_of(message: pb.Entry) -> Entry:
    """Read an entry from the contract's message."""
    return Entry(
        transfer_id=strawberry.ID(message.transfer_id),
        seq=Int64(message.seq),
        account=message.account,
        amount_micros=Micros(message.amount_micros),
        kind=message.kind,
        request_id=message.request_id,
        time=time_of(message.time),
    )


def usage_of(message: pb.Usage) -> Usage:
    """Read a completion's usage from the contract's message."""
    return Usage(
        request_id=message.request_id,
        workspace_id=strawberry.ID(message.workspace_id),
        agent_group_id=strawberry.ID(message.agent_group_id),
        agent_id=strawberry.ID(message.agent_id),
        api_key_id=strawberry.ID(message.api_key_id),
        end_user=message.end_user,
        provider=message.provider,
        model=message.model,
        price_id=message.price_id,
        input_tokens=message.input_tokens,
        cached_input_tokens=message.cached_input_tokens,
        cache_write_tokens=message.cache_write_tokens,
        output_tokens=message.output_tokens,
        reasoning_tokens=message.reasoning_tokens,
        charged_micros=Micros(message.charged_micros),
        ceiling_micros=Micros(message.ceiling_micros),
        estimated=message.estimated,
        outcome=message.outcome,
        http_status=message.http_status,
        latency_ms=message.latency_ms,
        overhead_ms=message.overhead_ms,
        first_token_ms=message.first_token_ms,
        streamed=message.streamed,
        usage_source=message.usage_source,
        attempts=message.attempts,
        dialect=message.dialect,
        time=time_of(message.time),
        organization_id=message.organization_id,
    )


def uncertain_hold_of(message: pb.UncertainHold) -> UncertainHold:
    """Read an uncertain hold from the contract's message."""
    return UncertainHold(
        request_id=message.request_id,
        agent_id=strawberry.ID(message.agent_id),
        holder_id=message.holder_id,
        ceiling_micros=Micros(message.ceiling_micros),
        hold_time=time_of(message.hold_time),
        uncertain_time=time_of(message.uncertain_time),
        provider=message.provider,
        model=message.model,
    )


async def transfers(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Transfer]:
    """Read one page of an organization's transfers."""
    request = pb.ListTransfersRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.wallets.ListTransfers, request)
    return connection(transfer_of, answer.transfers, answer.next_page_token)


async def entries(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Entry]:
    """Read one page of an organization's entries."""
    request = pb.ListEntriesRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.wallets.ListEntries, request)
    return connection(entry_of, answer.entries, answer.next_page_token)


async def usage(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Usage]:
    """Read one page of an organization's completions."""
    request = pb.ListUsageRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.wallets.ListUsage, request)
    return connection(usage_of, answer.usage, answer.next_page_token)


async def uncertain_holds(
    operation: Operation, organization_id: str, first: int, after: str | None
) -> Connection[UncertainHold]:
    """Read one page of an organization's uncertain holds."""
    request = pb.ListUncertainHoldsRequest(
        organization_id=organization_id, page_size=size_of(first), page_token=after or ""
    )
    answer = await operation.call(operation.stubs.wallets.ListUncertainHolds, request)
    return connection(uncertain_hold_of, answer.holds, answer.next_page_token)
