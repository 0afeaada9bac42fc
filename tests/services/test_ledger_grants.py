from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc.holds import Granted, Refused
from ledger_svc.store import grants, wallets
from mandate.ledger.v1 import grants_pb2 as pb
from mandate.ledger.v1 import grants_pb2_grpc as rpc
from mesh import caller, ids
from mesh.caller import Caller
from mesh.client import call
from mesh.clock import SystemClock
from mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import FLAT_MICROS, TOKEN_MICROS, Tenant, check_books, move_time, owner, tenant

CREDIT = 1_000_000
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Desk:
    """The platform's operator, and a person at the edge of one tenant."""

    spender: Tenant
    operator: Any
    edge: Any
    who: Caller

    async def give(self, key: str, micros: int, expires: datetime | None = None, **more: Any) -> pb.GrantAnswer:
        asked: dict[str, Any] = {
            "organization_id": self.spender.organization,
            "amount_micros": micros,
            "category": pb.GRANT_CATEGORY_PROMOTIONAL,
            "reason": "welcome",
            "request_id": key,
            "expire_time": stamp(expires) if expires else None,
        }
        return await call(self.operator.GrantCredits, pb.GrantCreditsRequest(**{**asked, **more}))

    async def void(self, key: str, grant_id: str, reason: str = "mistake") -> pb.GrantAnswer:
        request = pb.VoidGrantRequest(
            organization_id=self.spender.organization, grant_id=grant_id, reason=reason, request_id=key
        )
        return await call(self.operator.VoidGrant, request)

    async def listed(self, page_size: int = 0, page_token: str = "") -> pb.ListGrantsResponse:
        request = pb.ListGrantsRequest(
            organization_id=self.spender.organization, page_size=page_size, page_token=page_token
        )
        with caller.acting(self.who):
            return await call(self.edge.ListGrants, request)

    async def figures(self) -> list[tuple[int, int, int]]:
        """Return what of each lot was burned, broken and remains."""
        return [
            (grant.burned_micros, grant.broken_micros, grant.remaining_micros) for grant in (await self.listed()).grants
        ]

    async def spend(self, key: str, tokens: int) -> None:
        await self.spender.place(key, tokens)
        await self.spender.settle(key, tokens)

    async def pass_time(self, moment: datetime) -> bool:
        """Let the organization's time come to a moment, and what is due by then be taken."""
        async with owner(self.spender.ledger.house) as connection:
            await move_time(connection, self.spender.organization, moment.isoformat())
        return await grants.expire(self.spender.ledger.database, self.spender.organization)

    async def transfers(self, *kinds: str) -> list[tuple[str, str, str, int]]:
        rows = await wallets.transfers(self.spender.ledger.database, self.spender.organization, None, 100)
        return [
            (row["kind"], row["debit"], row["credit"], row["amount_micros"])
            for row in reversed(rows)
            if row["kind"] in kinds
        ]

    async def audited(self) -> list[tuple[str, dict[str, Any]]]:
        rows = await self.spender.ledger.database.rows(
            "SELECT line FROM audit WHERE organization_id = $1 ORDER BY seq", self.spender.organization
        )
        found = [json.loads(row["line"]) for row in rows]
        return [(one["action"], one["detail"]) for one in found if one["action"].startswith("grant.")]

    async def told(self) -> list[str]:
        """Return the events of the organization."""
        rows = await self.spender.ledger.database.rows(
            "SELECT type FROM events WHERE organization_id = $1 ORDER BY revision", self.spender.organization
        )
        return [row["type"] for row in rows]

    async def check(self) -> None:
        async with owner(self.spender.ledger.house) as connection:
            await check_books(connection, self.spender.organization)


def stamp(at: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(at)
    return message


def soon(hours: int = 1) -> datetime:
    return SystemClock().now() + hours * HOUR


@asynccontextmanager
async def desk(
    ledger: RunningLedger, issuer: TestIssuer, credits_micros: int = 0, *, role: str = "viewer"
) -> AsyncGenerator[Desk]:
    spender = await tenant(ledger, credits_micros)
    async with (
        ledger.house.channel("ledger", ledger.address, as_service="operator") as operator,
        ledger.house.channel("ledger", ledger.address, as_service="edge") as edge,
    ):
        who = issuer.person(**{spender.organization: role})
        yield Desk(spender, rpc.GrantServiceStub(operator), rpc.GrantServiceStub(edge), who)


async def test_a_grant_is_posted_once_and_replayed(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at:
        first, second = await at.give("g1", 5 * CREDIT, soon()), await at.give("g2", 3, category=pb.GRANT_CATEGORY_PAID)
        again = await at.give("g1", 5 * CREDIT, first.grant.expire_time.ToDatetime(), priority=50)
        assert (first.replayed, again.replayed) == (False, True)
        assert again.grant == first.grant
        assert (first.grant.status, first.grant.priority) == (pb.GRANT_STATUS_ACTIVE, 50)
        assert await at.spender.wallet() == (5 * CREDIT + 3, 0)
        assert await at.transfers("grant") == [
            ("grant", "promotions", "wallet", 5 * CREDIT),
            ("grant", "purchases", "wallet", 3),
        ]
        assert [grant.id for grant in (await at.listed()).grants] == [first.grant.id, second.grant.id]
        assert [action for action, _ in await at.audited()] == ["grant.made"] * 2 == await at.told()
        await at.check()


async def test_a_key_that_was_used_otherwise_is_refused_by_the_field(ledger: RunningLedger, issuer: TestIssuer) -> None:
    until = soon()
    async with desk(ledger, issuer, CREDIT) as at:
        made = await at.give("g1", 5, until)
        other = await at.give("g2", 5, until)
        await at.void("v1", made.grant.id)
        for again, field in (
            (at.give("g1", 6, until), "amount_micros"),
            (at.give("g1", 5, until, priority=49), "priority"),
            (at.give("g1", 5, until + HOUR), "expire_time"),
            (at.give("g1", 5), "expire_time"),
            (at.give("g1", 5, until, category=pb.GRANT_CATEGORY_PAID), "category"),
            (at.give("g1", 5, until, reason="other"), "reason"),
            (at.give("bought", CREDIT), "kind"),
            (at.void("v1", other.grant.id), "grant_id"),
            (at.void("v1", made.grant.id, "other"), "reason"),
        ):
            with pytest.raises(AlreadyExists) as refused:
                await again
            assert (refused.value.reason, refused.value.details["field"]) == ("REQUEST_ID_REUSED", field)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("amount_micros", {"amount_micros": 0}),
        ("amount_micros", {"amount_micros": 10**15 + 1}),
        ("priority", {"priority": -1}),
        ("priority", {"priority": 101}),
        ("category", {"category": pb.GRANT_CATEGORY_UNSPECIFIED}),
        ("category", {"category": 9}),
        ("reason", {"reason": " "}),
        ("reason", {"reason": "x" * 501}),
        ("reason", {"reason": "\x00"}),
        ("request_id", {"request_id": "a/b"}),
        ("expire_time", {"expire_time": Timestamp(seconds=1)}),
        ("expire_time", {"expire_time": Timestamp(seconds=2**62)}),
    ],
)
async def test_a_bad_field_is_named(
    ledger: RunningLedger, issuer: TestIssuer, field: str, values: dict[str, Any]
) -> None:
    async with desk(ledger, issuer) as at:
        with pytest.raises(InvalidArgument) as refused:
            await at.give("g1", 5, **values)
        assert refused.value.details["field"] == field
        assert await at.spender.wallet() == (0, 0)


async def test_only_the_operator_gives_and_takes_back_and_only_what_is_there(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer, role="owner") as at, desk(ledger, issuer) as other:
        made = await at.give("g1", 5)
        with caller.acting(at.who):
            for method, request in (
                (at.edge.GrantCredits, pb.GrantCreditsRequest(organization_id=at.spender.organization)),
                (at.edge.VoidGrant, pb.VoidGrantRequest(grant_id=made.grant.id)),
            ):
                with pytest.raises(PermissionDenied, match="edge may not call"):
                    await call(method, request)
        with pytest.raises(NotFound):
            await at.give("g2", 5, organization_id=ids.new(ids.Kind.ORGANIZATION))
        with pytest.raises(NotFound):
            await at.give("g2", 5, organization_id=at.spender.path[-1])
        with pytest.raises(NotFound):
            await other.void("v1", made.grant.id)
        with pytest.raises(NotFound):
            await at.void("v1", ids.new(ids.Kind.GRANT))
        with pytest.raises(InvalidArgument, match="grant_id"):
            await at.void("v1", "nonsense")
        assert await at.figures() == [(0, 0, 5)]


async def test_the_number_of_open_grants_is_bounded(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 0)
    query = "SELECT status FROM make_grant($1, $2, $2, 5, 50, NULL, 'paid', 'test', 'test', 2)"
    statuses = [await ledger.database.value(query, spender.organization, f"g{number}") for number in range(3)]
    assert statuses == [grants.MADE, grants.MADE, grants.TOO_MANY]


async def test_pages_of_grants_are_oldest_first(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at:
        for number in range(1, 6):
            await at.give(f"g{number}", number)
        seen: list[int] = []
        token = ""
        while not seen or token:
            page = await at.listed(2, token)
            seen += [grant.amount_micros for grant in page.grants]
            token = page.next_page_token
    assert seen == [1, 2, 3, 4, 5]


async def test_spending_burns_the_lots_of_its_time_and_bought_credits_last(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer, 10 * TOKEN_MICROS) as at:
        await at.give("a", 10 * TOKEN_MICROS)
        await at.give("b", 10 * TOKEN_MICROS, soon(2))
        await at.spend("1", 4)
        assert await at.figures() == [(0, 0, 10 * TOKEN_MICROS), (4 * TOKEN_MICROS, 0, 6 * TOKEN_MICROS)]
        await at.give("c", 10 * TOKEN_MICROS, priority=0)
        await at.spend("2", 18)
        assert [burnt // TOKEN_MICROS for burnt, _, _ in await at.figures()] == [2, 10, 10]
        statuses = [grant.status for grant in (await at.listed()).grants]
        assert statuses == [pb.GRANT_STATUS_ACTIVE, pb.GRANT_STATUS_BURNED, pb.GRANT_STATUS_BURNED]
        await at.spend("3", 12)
        assert [burnt // TOKEN_MICROS for burnt, _, _ in await at.figures()] == [10, 10, 10]
        assert await at.spender.wallet() == (6 * TOKEN_MICROS, 0)
        await at.check()


async def test_what_is_left_at_the_end_goes_to_breakage_once(ledger: RunningLedger, issuer: TestIssuer) -> None:
    until = soon()
    async with desk(ledger, issuer, CREDIT) as at:
        await at.give("g", 10 * TOKEN_MICROS, until)
        await at.spend("1", 4)
        assert not await at.pass_time(until - timedelta(milliseconds=1))
        assert await at.figures() == [(4 * TOKEN_MICROS, 0, 6 * TOKEN_MICROS)]
        for _ in range(2):
            assert not await at.pass_time(until)
        assert await at.figures() == [(4 * TOKEN_MICROS, 6 * TOKEN_MICROS, 0)]
        assert (await at.listed()).grants[0].status == pb.GRANT_STATUS_EXPIRED
        assert await at.transfers("breakage") == [("breakage", "wallet", "breakage", 6 * TOKEN_MICROS)]
        assert await at.spender.wallet() == (CREDIT, 0)
        assert (await at.audited())[-1] == (
            "grant.expired", {"amount_micros": 6 * TOKEN_MICROS, "remaining_micros": 0}
        )  # fmt: skip
        assert await at.told() == ["grant.made", "grant.expired"]
        with pytest.raises(FailedPrecondition, match="nothing of the grant is left"):
            await at.void("v", (await at.listed()).grants[0].id)
        await at.check()


async def test_a_lot_that_was_spent_breaks_nothing(ledger: RunningLedger, issuer: TestIssuer) -> None:
    until = soon()
    async with desk(ledger, issuer, CREDIT) as at:
        await at.give("g", 10 * TOKEN_MICROS, until)
        await at.spend("1", 10)
        assert not await at.pass_time(until)
        assert await at.figures() == [(10 * TOKEN_MICROS, 0, 0)]
        assert (await at.listed()).grants[0].status == pb.GRANT_STATUS_BURNED
        assert await at.told() == ["grant.made"]


async def test_what_a_hold_in_flight_counts_on_is_taken_only_as_it_frees(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    until = soon()
    async with desk(ledger, issuer, 5 * TOKEN_MICROS) as at:
        await at.give("g", 10 * TOKEN_MICROS, until)
        await at.spender.place("h1", 8)
        await at.spender.place("h2", 4)
        assert await at.pass_time(until)  # 15 in all, 12 held: 3 can go, 7 wait
        assert await at.figures() == [(0, 3 * TOKEN_MICROS, 7 * TOKEN_MICROS)]
        assert await at.spender.wallet() == (12 * TOKEN_MICROS, 12 * TOKEN_MICROS)
        await at.spender.settle("h1", 6)  # burns 6 of the lot and frees 2: 1 is left of it, and goes
        assert not await at.pass_time(until)
        assert await at.figures() == [(6 * TOKEN_MICROS, 4 * TOKEN_MICROS, 0)]
        await at.spender.void("h2")
        assert await at.spender.wallet() == (5 * TOKEN_MICROS, 0)  # what was bought
        await at.check()


async def test_no_hold_is_placed_on_expired_credits(ledger: RunningLedger, issuer: TestIssuer) -> None:
    until = soon()
    async with desk(ledger, issuer, 5 * TOKEN_MICROS) as at:
        await at.give("g", 10 * TOKEN_MICROS, until)
        async with owner(ledger.house) as connection:
            await move_time(connection, at.spender.organization, until.isoformat())
        assert isinstance(await at.spender.place("h1", 6), Refused)
        assert await at.spender.wallet() == (5 * TOKEN_MICROS, 0)
        assert isinstance(await at.spender.place("h2", 5), Granted)
        assert await at.figures() == [(0, 10 * TOKEN_MICROS, 0)]
        await at.check()


@pytest.mark.parametrize(
    ("category", "source"),
    [(pb.GRANT_CATEGORY_PROMOTIONAL, "promotions"), (pb.GRANT_CATEGORY_PAID, "purchases")],
)
async def test_a_void_takes_back_what_is_left_to_where_it_came_from(
    ledger: RunningLedger, issuer: TestIssuer, category: pb.GrantCategory.ValueType, source: str
) -> None:
    async with desk(ledger, issuer) as at:
        made = await at.give("g", 10 * TOKEN_MICROS, soon(), category=category)
        await at.spend("1", 2)
        await at.spender.place("h", 5)
        voided = await at.void("v", made.grant.id)
        assert (voided.grant.status, voided.grant.remaining_micros) == (pb.GRANT_STATUS_VOIDED, 5 * TOKEN_MICROS)
        await at.spender.settle("h", 1)
        assert not await grants.expire(ledger.database, at.spender.organization)
        assert await at.figures() == [(3 * TOKEN_MICROS, 7 * TOKEN_MICROS, 0)]
        assert await at.transfers("grant_void") == [
            ("grant_void", "wallet", source, 3 * TOKEN_MICROS),
            ("grant_void", "wallet", source, 4 * TOKEN_MICROS),
        ]
        assert (await at.void("v", made.grant.id)).replayed
        with pytest.raises(FailedPrecondition):
            await at.void("v2", made.grant.id)
        told = ["grant.made", "grant.voided", "grant.returned", "grant.returned"]
        assert [action for action, _ in await at.audited()] == told == await at.told()
        assert await at.spender.wallet() == (0, 0)
        await at.check()


async def test_credits_that_come_back_restore_no_lot(ledger: RunningLedger, issuer: TestIssuer) -> None:
    until = soon()
    async with desk(ledger, issuer) as at:
        await at.give("g", 10 * TOKEN_MICROS, until)
        await at.spender.place("h", 6)
        await at.spender.lapse()  # its ceiling goes to suspense: spent until somebody decides
        assert await at.figures() == [(6 * TOKEN_MICROS, 0, 4 * TOKEN_MICROS)]
        await at.give("other", 1)
        query = "SELECT status FROM resolve_hold($1, 'k', 'h', 0, 'test', 'test')"
        assert await ledger.database.value(query, at.spender.organization) == 1
        assert (await at.figures())[0] == (6 * TOKEN_MICROS, 0, 4 * TOKEN_MICROS)
        await at.pass_time(until)
        assert await at.spender.wallet() == (6 * TOKEN_MICROS + 1, 0)
        await at.check()


async def test_what_is_taken_out_beyond_bought_credits_burns_lots(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, 100) as at:
        await at.give("g", 100)
        organization = at.spender.organization
        assert await ledger.database.value("SELECT granted_micros($1)", organization) == 100
        await wallets.post(ledger.database, organization, "a", "adjustment", -130, "", "test", "test")
        assert await at.figures() == [(30, 0, 70)]
        assert await ledger.database.value("SELECT granted_micros($1)", organization) == 70


async def test_racing_grants_and_charges_agree(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, 100 * FLAT_MICROS) as at:

        async def charge(number: int) -> None:
            await at.spender.place(f"h{number}", 1, model="mock-flat")
            await at.spender.settle(f"h{number}", 0, model="mock-flat")

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(charge(number))
                group.create_task(at.give(f"g{number % 10}", FLAT_MICROS))
        assert len((await at.listed()).grants) == 10
        await at.check()
