from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ledger_svc.holds import Granted, Refusal, Refused
from mandate.ledger.v1 import budgets_pb2 as pb
from mandate.ledger.v1 import budgets_pb2_grpc as rpc
from mesh import caller, ids
from mesh.client import call
from mesh.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, tenant


@asynccontextmanager
async def desk(ledger: RunningLedger, issuer: TestIssuer, role: str = "owner") -> AsyncGenerator[tuple[Tenant, Any]]:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        with caller.acting(issuer.person(**{spender.organization: role})):
            yield spender, rpc.BudgetServiceStub(channel)


def create(spender: Tenant, **changes: Any) -> pb.CreateBudgetRequest:
    values: dict[str, Any] = {
        "target_id": spender.path[-1],
        "period": pb.PERIOD_DAILY,
        "limit_micros": 10 * TOKEN_MICROS,
        "request_id": "b1",
    }
    return pb.CreateBudgetRequest(**(values | changes))


async def test_a_budget_opens_with_what_its_window_has_spent_and_holds(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        await spender.place("spent", 3)
        await spender.settle("spent", 3)
        await spender.place("held", 4)
        made = await call(stub.CreateBudget, create(spender))
        assert (made.settled_micros, made.held_micros) == (3 * TOKEN_MICROS, 4 * TOKEN_MICROS)
        assert await call(stub.CreateBudget, create(spender)) == made
        assert await spender.place("more", 9, 1) == Granted(3, 3 * TOKEN_MICROS, replayed=False)
        await spender.settle("held", 1)
        assert await spender.spent(made.id) == (4 * TOKEN_MICROS, 3 * TOKEN_MICROS, False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"period": pb.PERIOD_TOTAL}, "period"),
        ({"limit_micros": 1}, "limit_micros"),
        ({"auto_disable": True}, "auto_disable"),
    ],
)
async def test_a_key_of_another_budget_is_refused_by_the_field(
    ledger: RunningLedger, issuer: TestIssuer, changes: dict[str, Any], field: str
) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        await call(stub.CreateBudget, create(spender))
        with pytest.raises(AlreadyExists) as refused:
            await call(stub.CreateBudget, create(spender, **changes))
    assert refused.value.details["field"] == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"period": pb.PERIOD_UNSPECIFIED}, "period"),
        ({"limit_micros": -1}, "limit_micros"),
        ({"limit_micros": 10**15 + 1}, "limit_micros"),
        ({"request_id": ""}, "request_id"),
    ],
)
async def test_a_bad_field_of_a_budget_is_named(
    ledger: RunningLedger, issuer: TestIssuer, changes: dict[str, Any], field: str
) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        with pytest.raises(InvalidArgument) as refused:
            await call(stub.CreateBudget, create(spender, **changes))
    assert refused.value.details["field"] == field


async def test_a_budget_caps_a_node_and_nothing_else(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = await call(stub.CreateBudget, create(spender))
        with pytest.raises(InvalidArgument):
            await call(stub.CreateBudget, create(spender, target_id=made.id, request_id="b2"))
        unknown = ids.new(ids.Kind.AGENT)
        with pytest.raises(NotFound):
            await call(stub.CreateBudget, create(spender, target_id=unknown, request_id="b3"))
        update = pb.UpdateBudgetRequest(budget_id=spender.organization, limit_micros=1, request_id="u1")
        with pytest.raises(NotFound):
            await call(stub.UpdateBudget, update)


async def test_a_limit_below_what_is_in_flight_stops_new_holds_and_kills_none(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = await call(stub.CreateBudget, create(spender))
        await spender.place("a", 8)
        update = pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=2 * TOKEN_MICROS, request_id="u1")
        lowered = await call(stub.UpdateBudget, update)
        assert (lowered.limit_micros, lowered.held_micros) == (2 * TOKEN_MICROS, 8 * TOKEN_MICROS)
        refused = await spender.place("b", 1)
        assert isinstance(refused, Refused)
        assert refused.refusal is Refusal.IN_FLIGHT
        await spender.settle("a", 8)
        assert (await spender.spent(made.id))[0] == 8 * TOKEN_MICROS


async def test_a_change_of_a_budget_is_replayed_and_its_key_refused_for_another(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = await call(stub.CreateBudget, create(spender))
        limit = pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=7, request_id="u1")
        await call(stub.UpdateBudget, limit)
        await call(stub.UpdateBudget, pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=8, request_id="u2"))
        assert (await call(stub.UpdateBudget, limit)).limit_micros == 8
        for request, field in (
            (pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=9, request_id="u1"), "limit_micros"),
            (pb.UpdateBudgetRequest(budget_id=made.id, auto_disable=False, request_id="u1"), "limit_micros"),
            (
                pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=7, auto_disable=False, request_id="u1"),
                "auto_disable",
            ),
        ):
            with pytest.raises(AlreadyExists) as refused:
                await call(stub.UpdateBudget, request)
            assert refused.value.details["field"] == field
        with pytest.raises(InvalidArgument):
            await call(stub.UpdateBudget, pb.UpdateBudgetRequest(budget_id=made.id, request_id="u3"))


async def test_a_disabled_budget_is_enabled_again_by_hand(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = await call(stub.CreateBudget, create(spender, auto_disable=True))
        await spender.place("a", 10)
        await spender.settle("a", 10)
        refused = await spender.place("b", 1)
        assert isinstance(refused, Refused)
        assert (refused.refusal, refused.target_id) == (Refusal.DISABLED, spender.path[-1])
        update = pb.UpdateBudgetRequest(budget_id=made.id, limit_micros=20 * TOKEN_MICROS, request_id="u1")
        assert (await call(stub.UpdateBudget, update)).disabled
        enabled = await call(stub.EnableBudget, pb.EnableBudgetRequest(budget_id=made.id, request_id="e1"))
        assert not enabled.disabled
        assert isinstance(await spender.place("c", 1), Granted)


async def test_budgets_page_oldest_first(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = [
            (await call(stub.CreateBudget, create(spender, target_id=node, request_id=f"b{number}"))).id
            for number, node in enumerate(spender.path)
        ]
        first = await call(stub.ListBudgets, pb.ListBudgetsRequest(organization_id=spender.organization, page_size=3))
        request = pb.ListBudgetsRequest(organization_id=spender.organization, page_token=first.next_page_token)
        second = await call(stub.ListBudgets, request)
    assert [budget.id for budget in (*first.budgets, *second.budgets)] == made
    assert [budget.target_id for budget in (*first.budgets, *second.budgets)] == list(spender.path)


async def test_a_member_of_the_organization_reads_budgets_and_makes_none(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer, "member") as (spender, stub):
        await call(stub.ListBudgets, pb.ListBudgetsRequest(organization_id=spender.organization))
        with pytest.raises(PermissionDenied):
            await call(stub.CreateBudget, create(spender))


async def test_a_stranger_finds_no_budget(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as (spender, stub):
        made = await call(stub.CreateBudget, create(spender))
        with caller.acting(issuer.person(**{ids.new(ids.Kind.ORGANIZATION): "owner"})), pytest.raises(NotFound):
            await call(stub.EnableBudget, pb.EnableBudgetRequest(budget_id=made.id, request_id="e1"))


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        ("2101-03-10T09:59:59Z", "2101-03-10T00:00:00Z", "2101-03-11T00:00:00Z"),
        ("2101-03-10T23:59:59Z", "2101-03-10T00:00:00Z", "2101-03-11T00:00:00Z"),
        ("2101-03-11T00:00:00Z", "2101-03-11T00:00:00Z", "2101-03-11T15:00:00Z"),
        ("2101-03-11T15:00:00Z", "2101-03-11T15:00:00Z", "2101-03-12T15:00:00Z"),
        ("2101-03-14T16:00:00Z", "2101-03-14T15:00:00Z", "2101-03-15T15:00:00Z"),
        ("2101-03-15T15:00:00Z", "2101-03-15T15:00:00Z", "2101-03-15T23:00:00Z"),
        ("2101-03-27T00:00:00Z", "2101-03-26T23:00:00Z", "2101-03-27T22:00:00Z"),
    ],
)
async def test_a_new_time_zone_counts_from_the_end_of_the_window_that_runs(
    ledger: RunningLedger, moment: str, start: str, end: str
) -> None:
    # The window that runs goes on, and a short one follows until the new zone's midnight; the last day is the one that
    # summer time makes short.
    spender = await tenant(ledger, 0)
    changes = (("Asia/Tokyo", "2101-03-10T10:00:00Z"), ("Europe/Berlin", "2101-03-14T16:00:00Z"))
    for version, (zone, at) in enumerate(changes, 1):
        await ledger.database.execute(
            "INSERT INTO rules VALUES ($1, $2, $3, 'list', '', $3, 'test', $4::text::timestamptz)",
            spender.organization,
            version,
            zone,
            at,
        )
    found = await ledger.database.one(
        "SELECT starts = $3::text::timestamptz AS starts, ends = $4::text::timestamptz AS ends, starts AS s, ends AS e "
        "FROM window_of($1, 'daily', $2::text::timestamptz)",
        spender.organization,
        moment,
        start,
        end,
    )
    assert found["starts"], found
    assert found["ends"], found


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        ("2026-11-01T03:59:59Z", "2026-10-31T04:00:00Z", "2026-11-01T05:00:00Z"),
        ("2026-11-01T04:30:00Z", "2026-10-31T04:00:00Z", "2026-11-01T05:00:00Z"),
        ("2026-11-01T05:00:00Z", "2026-11-01T05:00:00Z", "2026-11-02T05:00:00Z"),
    ],
)
async def test_where_a_day_has_two_midnights_its_window_begins_at_the_second(
    ledger: RunningLedger, moment: str, start: str, end: str
) -> None:
    spender = await tenant(ledger, 0)
    await ledger.database.execute(
        "INSERT INTO rules VALUES ($1, 1, 'America/Havana', 'list', '', 'r', 'test', '2026-01-01')",
        spender.organization,
    )
    found = await ledger.database.one(
        "SELECT starts = $3::text::timestamptz AS starts, ends = $4::text::timestamptz AS ends "
        "FROM window_of($1, 'daily', $2::text::timestamptz)",
        spender.organization,
        moment,
        start,
        end,
    )
    assert tuple(found.values()) == (True, True)
