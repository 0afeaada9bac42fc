from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from mesh.client import call
from mesh.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, Unavailable
from tests.conftest import RunningLedger
from tests.services.ledger_processes import charge
from tests.services.ledger_running import FLAT_MICROS, check_books, owner, tenant
from tests.services.test_ledger_stream import hold, settle

LONG = "x" * 129
BEAT_SECONDS = 0.25
PATIENCE_MS = 30_000


def a_holder() -> str:
    return ids.new(ids.Kind.HOLDER)


@asynccontextmanager
async def charging(ledger: RunningLedger, *, as_service: str = "gateway") -> AsyncGenerator[Any]:
    async with ledger.house.channel("ledger", ledger.address, as_service=as_service) as channel:
        yield rpc.ChargeServiceStub(channel)


async def becomes(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110  # it is a database that is asked
            await asyncio.sleep(0.02)


async def count(ledger: RunningLedger, organization: str, what: str = "count(*)") -> int:
    found: int = await ledger.database.value(f"SELECT {what} FROM holds WHERE organization_id = $1", organization)  # noqa: S608
    return found


async def test_each_answer_comes_again_as_a_replay(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(3 * FLAT_MICROS + 100_000))[-1]
    place = pb.PlaceHoldsRequest(holder_id=a_holder(), holds=[hold(key, agent) for key in "abcd"])
    settles = pb.SettleHoldsRequest(settles=[settle("a", agent)])
    voids = pb.VoidHoldsRequest(voids=[pb.VoidHold(request_id="b", agent_id=agent, reason="never sent")])
    charges = pb.PostChargesRequest(charges=[charge("p", agent), charge("q", agent, amount_micros=10 * FLAT_MICROS)])
    async with charging(ledger) as stub:
        for replayed in (False, True):
            placed = (await call(stub.PlaceHolds, place)).holds
            assert [one.WhichOneof("outcome") for one in placed] == ["granted"] * 3 + ["refused"]
            assert [one.granted.replayed or one.refused.replayed for one in placed] == [replayed] * 4
            (settled,) = (await call(stub.SettleHolds, settles)).settles
            assert (settled.settled.charged_micros, settled.settled.replayed) == (FLAT_MICROS, replayed)
            (voided,) = (await call(stub.VoidHolds, voids)).voids
            assert (voided.HasField("voided"), voided.voided.replayed) == (True, replayed)
            posted, refused = (await call(stub.PostCharges, charges)).charges
            assert (posted.posted.charged_micros, posted.posted.replayed) == (100_000, replayed)
            assert (refused.refused.refusal, refused.refused.replayed) == (pb.HOLD_REFUSAL_EXHAUSTED, replayed)
            assert posted.posted.balance_micros == 2 * FLAT_MICROS


async def test_answers_come_in_the_order_of_the_request_whatever_they_are(ledger: RunningLedger) -> None:
    path = await ledger.tenant(2_000 * FLAT_MICROS)
    kinds = ("granted", "INVALID_FIELD", "STALE_PATH", "PRICE_NOT_FOUND")
    changes: list[dict[str, Any]] = [{}, {"choices": 0}, {"path_version": 3}, {"routes": [pb.Route(model="none")]}]
    order = [(number * 7 + number // 11) % 4 for number in range(999)]
    holds = [hold(f"h{number}", path[-1], **changes[kind]) for number, kind in enumerate(order)]
    holds.append(holds[0])
    async with charging(ledger) as stub:
        answers = (await call(stub.PlaceHolds, pb.PlaceHoldsRequest(holder_id=a_holder(), holds=holds))).holds
        settles = [settle(one.request_id, path[-1]) for one in reversed(holds[:-1])]
        ended = (await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=settles))).settles
    assert [one.request_id for one in answers] == [one.request_id for one in holds]
    assert [one.fault.reason or "granted" for one in answers] == [kinds[kind] for kind in [*order, order[0]]]
    assert [one.granted.replayed for one in answers] == [False] * 999 + [True]
    assert [one.request_id for one in ended] == [one.request_id for one in settles]
    assert [one.HasField("settled") for one in ended] == [kind == 0 for kind in reversed(order)]
    assert await count(ledger, path[0]) == order.count(0)


async def test_a_hold_is_ended_under_the_name_of_its_own_agent(ledger: RunningLedger) -> None:
    first = await tenant(ledger, 2 * FLAT_MICROS)
    agent, other = first.path[-1], (await first.under(ids.new(ids.Kind.AGENT), *first.path[1:3])).path[-1]
    async with charging(ledger) as stub:
        holds = [hold("a", agent), hold("b", agent)]
        await call(stub.PlaceHolds, pb.PlaceHoldsRequest(holder_id=a_holder(), holds=holds))
        (settled,) = (await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=[settle("a", other)]))).settles
        assert (settled.fault.reason, settled.fault.metadata["field"]) == ("REQUEST_ID_REUSED", "agent_id")
        void = pb.VoidHold(request_id="b", agent_id=other)
        (voided,) = (await call(stub.VoidHolds, pb.VoidHoldsRequest(voids=[void]))).voids
        assert (voided.fault.reason, voided.fault.metadata["field"]) == ("REQUEST_ID_REUSED", "agent_id")


async def test_a_charge_is_settled_already_and_can_be_neither_settled_nor_voided(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(FLAT_MICROS))[-1]
    async with charging(ledger) as stub:
        await call(stub.PostCharges, pb.PostChargesRequest(charges=[charge("c", agent)]))
        (voided,) = (
            await call(stub.VoidHolds, pb.VoidHoldsRequest(voids=[pb.VoidHold(request_id="c", agent_id=agent)]))
        ).voids
        assert (voided.fault.reason, voided.fault.metadata["how"]) == ("HOLD_ENDED", "settled")
        (settled,) = (await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=[settle("c", agent)]))).settles
        assert (settled.fault.reason, settled.fault.metadata["field"]) == ("INVALID_FIELD", "route")


async def test_charges_of_many_agents_in_one_call_are_answered_in_order(ledger: RunningLedger) -> None:
    first = await tenant(ledger, 61 * 100_000)
    agents = [first, *[await first.under(ids.new(ids.Kind.AGENT), *first.path[1:3]) for _ in range(3)]]
    stopped = await agents[3].budget(0)
    charges = [charge(f"c{number}", agents[number % 4].path[-1]) for number in range(80)]
    async with charging(ledger) as stub:
        answers = (await call(stub.PostCharges, pb.PostChargesRequest(charges=charges))).charges
    assert [one.request_id for one in answers] == [one.request_id for one in charges]
    assert [one.HasField("posted") for one in answers] == [number % 4 != 3 for number in range(80)]
    assert {one.refused.account_id for one in answers if one.HasField("refused")} == {stopped}
    assert await first.wallet() == (100_000, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, first.organization)


BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("PlaceHolds", pb.PlaceHoldsRequest(holds=[hold("a", "agt_x")]), "holder_id"),
    ("PlaceHolds", pb.PlaceHoldsRequest(holder_id="agt_x", holds=[hold("a", "agt_x")]), "holder_id"),
    ("PlaceHolds", pb.PlaceHoldsRequest(holder_id=a_holder()), "holds"),
    ("PlaceHolds", pb.PlaceHoldsRequest(holder_id=a_holder(), holds=[hold("a", "agt_x")] * 1_001), "holds"),
    ("SettleHolds", pb.SettleHoldsRequest(), "settles"),
    ("SettleHolds", pb.SettleHoldsRequest(settles=[settle("a", "agt_x")] * 1_001), "settles"),
    ("VoidHolds", pb.VoidHoldsRequest(), "voids"),
    ("VoidHolds", pb.VoidHoldsRequest(voids=[pb.VoidHold()] * 1_001), "voids"),
    ("PostCharges", pb.PostChargesRequest(), "charges"),
    ("PostCharges", pb.PostChargesRequest(charges=[charge("a", "agt_x")] * 1_001), "charges"),
    ("RenewLease", pb.RenewLeaseRequest(), "holder_id"),
    ("RenewLease", pb.RenewLeaseRequest(holder_id="gtw_\x00"), "holder_id"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD_REQUESTS)
async def test_a_bad_request_is_refused_whole(ledger: RunningLedger, method: str, request_: Any, field: str) -> None:
    async with charging(ledger) as stub:
        with pytest.raises(InvalidArgument) as refused:
            await call(getattr(stub, method), request_)
    assert refused.value.details["field"] == field


BAD_CHARGES: list[tuple[dict[str, Any], str, str]] = [
    ({"request_id": ""}, "INVALID_FIELD", "request_id"),
    ({"request_id": LONG}, "INVALID_FIELD", "request_id"),
    ({"request_id": "a\x00b"}, "INVALID_FIELD", "request_id"),
    ({"agent_id": "agt_unknown"}, "STALE_PATH", ""),
    ({"path_version": 3}, "STALE_PATH", ""),
    ({"path_version": -(2**63)}, "STALE_PATH", ""),
    ({"amount_micros": 0}, "INVALID_FIELD", "amount_micros"),
    ({"amount_micros": -1}, "INVALID_FIELD", "amount_micros"),
    ({"amount_micros": 10**15 + 1}, "INVALID_FIELD", "amount_micros"),
    ({"provider": ""}, "INVALID_FIELD", "provider"),
    ({"provider": LONG}, "INVALID_FIELD", "provider"),
    ({"model": ""}, "INVALID_FIELD", "model"),
    ({"model": "a\x00b"}, "INVALID_FIELD", "model"),
    ({"api_key_id": LONG}, "INVALID_FIELD", "api_key_id"),
    ({"end_user": LONG}, "INVALID_FIELD", "end_user"),
]


async def test_a_bad_charge_fails_alone(ledger: RunningLedger) -> None:
    path = await ledger.tenant(100 * FLAT_MICROS)
    charges: list[pb.PostCharge] = []
    for number, (changes, _, _) in enumerate(BAD_CHARGES):
        charges += [charge(f"good{number}", path[-1]), charge(f"bad{number}", path[-1], **changes)]
    async with charging(ledger) as stub:
        answers = (await call(stub.PostCharges, pb.PostChargesRequest(charges=charges))).charges
    assert all(one.HasField("posted") for one in answers[::2])
    said = [(one.fault.reason, one.fault.metadata.get("field", "")) for one in answers[1::2]]
    assert said == [(reason, field) for _, reason, field in BAD_CHARGES]
    assert await count(ledger, path[0]) == len(BAD_CHARGES)


async def test_a_lapsed_holder_places_nothing_and_its_charges_are_not_its_own(ledger: RunningLedger) -> None:
    path, holder = await ledger.tenant(10 * FLAT_MICROS), a_holder()
    place = pb.PlaceHoldsRequest(holder_id=holder, holds=[hold("a", path[-1])])
    async with charging(ledger) as stub:
        await call(stub.PlaceHolds, place)
        assert not (await call(stub.RenewLease, pb.RenewLeaseRequest(holder_id=holder))).lapsed
        await ledger.database.execute("UPDATE leases SET lapsed_at = now() WHERE holder_id = $1", holder)
        assert (await call(stub.RenewLease, pb.RenewLeaseRequest(holder_id=holder))).lapsed
        place.holds[0].request_id = "b"
        await asyncio.sleep(BEAT_SECONDS)  # by then the next call asks for its lease again
        with pytest.raises(Unavailable) as refused:
            await call(stub.PlaceHolds, place)
        assert refused.value.reason == "LEASE_LAPSED"
        (posted,) = (await call(stub.PostCharges, pb.PostChargesRequest(charges=[charge("c", path[-1])]))).charges
        assert posted.HasField("posted")
        (late,) = (await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=[settle("a", path[-1])]))).settles
        assert late.settled.charged_micros == FLAT_MICROS
    assert await count(ledger, path[0]) == 2


@pytest.mark.parametrize("how", ["PlaceHolds", "RenewLease"])
async def test_a_call_is_a_beat(ledger: RunningLedger, how: str) -> None:
    path, holder = await ledger.tenant(10 * FLAT_MICROS), a_holder()
    place = pb.PlaceHoldsRequest(holder_id=holder, holds=[hold("a", path[-1])])
    async with charging(ledger) as stub:
        await call(stub.PlaceHolds, place)
        await ledger.database.execute(
            "UPDATE leases SET beat_at = now() - interval '1 hour' WHERE holder_id = $1", holder
        )
        await asyncio.sleep(BEAT_SECONDS)
        await call(getattr(stub, how), place if how == "PlaceHolds" else pb.RenewLeaseRequest(holder_id=holder))
    heard = "SELECT beat_at > now() - interval '1 minute' FROM leases WHERE holder_id = $1"
    assert await ledger.database.value(heard, holder)


async def test_a_holder_that_never_placed_anything_has_no_lease_to_renew(ledger: RunningLedger) -> None:
    async with charging(ledger) as stub:
        assert (await call(stub.RenewLease, pb.RenewLeaseRequest(holder_id=a_holder()))).lapsed


async def test_a_call_whose_time_is_up_leaves_nothing_that_was_not_begun(ledger: RunningLedger) -> None:
    path, holder = await ledger.tenant(10 * FLAT_MICROS), a_holder()
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    def request(key: str) -> pb.PlaceHoldsRequest:
        return pb.PlaceHoldsRequest(holder_id=holder, holds=[hold(key, path[-1])])

    async with charging(ledger) as stub, owner(ledger.house) as connection:
        async with connection.transaction():
            await connection.execute("SELECT lock_organization($1)", path[0])
            begun = asyncio.ensure_future(call(stub.PlaceHolds, request("begun")))
            await becomes(lambda: _is_one(connection.fetchval(waiting)))
            with pytest.raises(DeadlineExceeded):
                await call(stub.PlaceHolds, request("queued"), timeout_ms=200)
        assert not (await begun).holds[0].granted.replayed
        assert await count(ledger, path[0]) == 1
        assert not (await call(stub.PlaceHolds, request("queued"))).holds[0].granted.replayed


async def _is_one(asked: Awaitable[int | None]) -> bool:
    return await asked == 1


async def test_calls_that_come_together_share_commits(ledger: RunningLedger) -> None:
    path, holder = await ledger.tenant(300 * FLAT_MICROS), a_holder()
    first, *others = (
        pb.PlaceHoldsRequest(holder_id=holder, holds=[hold(f"h{number}", path[-1])]) for number in range(200)
    )
    async with charging(ledger) as stub, owner(ledger.house) as connection, asyncio.TaskGroup() as group:

        def place(request: pb.PlaceHoldsRequest) -> asyncio.Task[pb.PlaceHoldsResponse]:
            return group.create_task(call(stub.PlaceHolds, request, timeout_ms=PATIENCE_MS))

        async with connection.transaction():
            await connection.execute("SELECT lock_organization($1)", path[0])
            calls = [place(first)]
            await becomes(lambda: _is_one(connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")))
            calls += [place(request) for request in others]
            async with asyncio.timeout(10):
                while ledger.ledger.commits.waiting < len(others):  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.01)
    answers = [each.result() for each in calls]
    assert all(answer.holds[0].HasField("granted") for answer in answers)
    assert await count(ledger, path[0], "count(DISTINCT held_at)") == 2


@pytest.mark.parametrize("service", ["edge", "identity", "vault"])
@pytest.mark.parametrize("method", ["PlaceHolds", "SettleHolds", "VoidHolds", "RenewLease", "PostCharges"])
async def test_only_a_gateway_may_charge(ledger: RunningLedger, service: str, method: str) -> None:
    async with charging(ledger, as_service=service) as stub:
        with pytest.raises(PermissionDenied):
            await call(getattr(stub, method), getattr(pb, f"{method}Request")())
