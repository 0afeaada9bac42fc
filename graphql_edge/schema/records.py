"""What happened, as the ledger keeps it: transfers, entries, usage, uncertain holds and the audit chain."""

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import invalid
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import INTEGER, Micros, time_of
from graphql_edge.schema.wallets import Transfer, transfer_of
from mandate.ledger.v1 import audit_pb2
from mandate.ledger.v1 import wallets_pb2 as pb

AUDIT_LINES_MAX = 1_000


@strawberry.type
class Entry:
    """The line that one transfer makes on one account; above 0: into it. All lines of a transfer sum to zero."""

    transfer_id: strawberry.ID
    seq: str
    account: str
    amount_micros: Micros
    kind: str
    idempotency_key: str
    time: datetime


@strawberry.type
class Usage:
    """One completion as it was charged; `requestId` is what the gateway told in x-request-id."""

    request_id: str
    workspace_id: strawberry.ID
    agent_group_id: strawberry.ID
    agent_id: strawberry.ID
    api_key_id: strawberry.ID
    provider: str
    model: str
    price_id: str
    input_tokens: Micros
    cached_input_tokens: Micros
    cache_write_tokens: Micros
    output_tokens: Micros
    reasoning_tokens: Micros
    charged_micros: Micros
    ceiling_micros: Micros
    estimated: bool
    outcome: str
    http_status: int
    latency_ms: int
    overhead_ms: int
    first_token_ms: int
    streamed: bool
    time: datetime


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


@strawberry.type
class AuditExport:
    """Lines of the audit chain, each a JSON object, for `mandate verify`; go on with `afterSeq` of the last line."""

    lines: list[str]
    has_more: bool
