"""Credit grants: give, list, take back."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.grants import Grant, Status
from ledger_svc.store import grants, registry
from mandate.ledger.v1 import grants_pb2 as pb
from mandate.ledger.v1 import grants_pb2_grpc as rpc
from mesh import caller, ids
from mesh.db import Database
from mesh.errors import Exhausted, FailedPrecondition, NotFound, invalid
from mesh.idempotency import check_request_id
from mesh.money import MICROS_MAX
from mesh.paging import next_token, page_of

PRIORITY_DEFAULT, PRIORITY_MAX = 50, 100
REASON_MAX = 500
CATEGORIES = {pb.GRANT_CATEGORY_PROMOTIONAL: "promotional", pb.GRANT_CATEGORY_PAID: "paid"}
CATEGORY_NUMBERS = {name: number for number, name in CATEGORIES.items()}
STATUS_NUMBERS = {
    Status.ACTIVE: pb.GRANT_STATUS_ACTIVE,
    Status.BURNED: pb.GRANT_STATUS_BURNED,
    Status.EXPIRED: pb.GRANT_STATUS_EXPIRED,
    Status.VOIDED: pb.GRANT_STATUS_VOIDED,
}
Context = grpc.aio.ServicerContext[Any, Any]


class GrantServicer(rpc.GrantServiceServicer):
    """Implements mandate.ledger.v1.GrantService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def GrantCredits(self, request: pb.GrantCreditsRequest, context: Context) -> pb.GrantAnswer:
        new = _new_grant(request)
        if await registry.organization_of(self._db, request.organization_id) != request.organization_id:
            raise NotFound("NOT_FOUND", f"no organization {request.organization_id!r}"[:200], field="organization_id")
        made = await grants.make(self._db, request.organization_id, new, caller.current().actor)
        match made.status:
            case grants.DIFFERS:
                raise wire.differs(made.field)
            case grants.BORN_EXPIRED:
                raise invalid("expire_time", "must be in the future")
            case grants.TOO_MANY:
                raise Exhausted(
                    "GRANTS_MAX_REACHED", f"an organization has at most {grants.OPEN_MAX} grants that are not used up"
                )
            case _:
                return await self._answer(request.organization_id, made)

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Context) -> pb.ListGrantsResponse:
        page = page_of(request.page_size, request.page_token)
        found = await grants.of_organization(self._db, request.organization_id, page.after or "", page.size + 1)
        return pb.ListGrantsResponse(
            grants=[_grant(grant, found.at) for grant in found.grants[: page.size]],
            next_page_token=next_token(page, [grant.id for grant in found.grants]),
        )

    async def VoidGrant(self, request: pb.VoidGrantRequest, context: Context) -> pb.GrantAnswer:
        key, reason, actor = check_request_id(request), _reason(request.reason), caller.current().actor
        if ids.kind_of(request.grant_id) is not ids.Kind.GRANT:
            raise invalid("grant_id", "must be the id of a grant")
        if ids.kind_of(request.organization_id) is not ids.Kind.ORGANIZATION:
            raise invalid("organization_id", "must be the id of an organization")
        voided = await grants.void(self._db, request.organization_id, request.grant_id, key, actor, reason)
        match voided.status:
            case grants.VOID_DIFFERS:
                raise wire.differs(voided.field)
            case grants.NO_GRANT:
                raise NotFound("NOT_FOUND", f"no grant {request.grant_id!r}", field="grant_id")
            case grants.ENDED:
                raise FailedPrecondition("GRANT_ENDED", "nothing of the grant is left to void", field="grant_id")
            case _:
                return await self._answer(request.organization_id, voided)

    async def _answer(self, organization_id: str, answer: grants.Answer) -> pb.GrantAnswer:
        found = await grants.get(self._db, organization_id, answer.grant_id)
        return pb.GrantAnswer(grant=_grant(found.grants[0], found.at), replayed=answer.replayed)


def _new_grant(request: pb.GrantCreditsRequest) -> grants.NewGrant:
    priority = request.priority if request.HasField("priority") else PRIORITY_DEFAULT
    if not 0 <= priority <= PRIORITY_MAX:
        raise invalid("priority", f"must be 0 to {PRIORITY_MAX}")
    if not 1 <= request.amount_micros <= MICROS_MAX:
        raise invalid("amount_micros", f"must be 1 to {MICROS_MAX}")
    category = CATEGORIES.get(request.category)
    if category is None:
        raise invalid("category", "must be PROMOTIONAL or PAID")
    return grants.NewGrant(
        id=ids.new(ids.Kind.GRANT),
        request_id=check_request_id(request),
        amount_micros=request.amount_micros,
        priority=priority,
        expires_at=_expiry(request) if request.HasField("expire_time") else None,
        category=category,
        reason=_reason(request.reason),
    )


def _expiry(request: pb.GrantCreditsRequest) -> datetime:
    try:
        return request.expire_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid("expire_time", "is no time") from None


def _reason(text: str) -> str:
    if len(text) > REASON_MAX or any(unicodedata.category(character) == "Cc" for character in text):
        raise invalid("reason", f"must have at most {REASON_MAX} characters, none of them a control character")
    if not text.strip():
        raise invalid("reason", "must be stated")
    return text.strip()


def _grant(grant: Grant, now: datetime) -> pb.Grant:
    packed = pb.Grant(
        id=grant.id,
        organization_id=grant.organization_id,
        category=CATEGORY_NUMBERS[grant.category],
        status=STATUS_NUMBERS[grant.status(now)],
        priority=grant.priority,
        amount_micros=grant.amount_micros,
        burned_micros=grant.burned_micros,
        broken_micros=grant.broken_micros,
        remaining_micros=grant.remaining_micros,
        reason=grant.reason,
        create_time=wire.stamp(grant.made_at),
    )
    if grant.expires_at is not None:
        packed.expire_time.CopyFrom(wire.stamp(grant.expires_at))
    if grant.voided_at is not None:
        packed.void_time.CopyFrom(wire.stamp(grant.voided_at))
    return packed
