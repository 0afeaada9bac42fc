"""Credit grants: lots of promotional or prepaid credits and what is left of them."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import Micros, optional_time, time_of
from mandate.ledger.v1 import grants_pb2 as pb


@strawberry.enum
class CreditGrantCategory(Enum):
    """Whether somebody paid for the credits."""

    PROMOTIONAL = pb.GRANT_CATEGORY_PROMOTIONAL
    PAID = pb.GRANT_CATEGORY_PAID


@strawberry.enum
class CreditGrantStatus(Enum):
    """What became of the credits; BURNED is spent."""

    ACTIVE = pb.GRANT_STATUS_ACTIVE
    BURNED = pb.GRANT_STATUS_BURNED
    EXPIRED = pb.GRANT_STATUS_EXPIRED
    VOIDED = pb.GRANT_STATUS_VOIDED


@strawberry.type
class CreditGrant:
    """One lot; spending burns lots in the order of priority (lower first), expiry and making, bought credits last."""

    id: strawberry.ID
    category: CreditGrantCategory
    status: CreditGrantStatus
    priority: int
    amount_micros: Micros
    burned_micros: Micros
    broken_micros: Micros
    remaining_micros: Micros
    reason: str
    create_time: datetime
    expire_time: datetime | None
    void_time: datetime | None


def grant_of(message: pb.Grant) -> CreditGrant:
    """Read a grant from the contract's message."""
    return CreditGrant(
        id=strawberry.ID(message.id),
        category=CreditGrantCategory(message.category),
        status=CreditGrantStatus(message.status),
        priority=message.priority,
        amount_micros=Micros(message.amount_micros),
        burned_micros=Micros(message.burned_micros),
        broken_micros=Micros(message.broken_micros),
        remaining_micros=Micros(message.remaining_micros),
        reason=message.reason,
        create_time=time_of(message.create_time),
        expire_time=optional_time(message.expire_time),
        void_time=optional_time(message.void_time),
    )


async def credit_grants(
    operation: Operation, organization_id: str, first: int, after: str | None
) -> Connection[CreditGrant]:
    """Read one page of an organization's grants."""
    request = pb.ListGrantsRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.grants.ListGrants, request)
    return connection(grant_of, answer.grants, answer.next_page_token)
