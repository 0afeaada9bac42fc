from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from ledger_svc.store import charges
from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from tests.conftest import RunningLedger
from tests.services.ledger_running import FLAT_MICROS


@dataclass(frozen=True)
class Gateway:
    """One stream of a gateway."""

    call: Any

    async def ask(self, request: pb.ChargeRequest) -> pb.ChargeResponse:
        """Send a message and gather the answers to all its items."""
        await self.call.write(request)
        return await self.answers(len(request.holds), len(request.settles), len(request.voids), request.beat)

    async def answers(self, holds: int, settles: int = 0, voids: int = 0, beat: int = 0) -> pb.ChargeResponse:
        found = pb.ChargeResponse()
        async with asyncio.timeout(10):
            while (len(found.holds), len(found.settles), len(found.voids), found.beat) < (holds, settles, voids, beat):
                response = await self.call.read()
                assert response is not grpc.aio.EOF
                found.MergeFrom(response)
        return found

    async def status(self) -> grpc.StatusCode:
        async with asyncio.timeout(10):
            return await self.call.code()


@asynccontextmanager
async def stream(ledger: RunningLedger, *, as_service: str = "gateway") -> AsyncGenerator[Gateway]:
    async with ledger.house.channel("ledger", ledger.address, as_service=as_service) as channel:
        call = rpc.ChargeServiceStub(channel).Charge()
        try:
            yield Gateway(call)
        finally:
            call.cancel()


def hold(key: str, agent: str, **changes: Any) -> pb.PlaceHold:
    values: dict[str, Any] = {
        "request_id": key,
        "agent_id": agent,
        "path_version": 4,
        "routes": [pb.Route(provider="mock", model="mock-flat")],
        "choices": 1,
        "output_tokens_wanted": 1,
    }
    return pb.PlaceHold(**(values | changes))


def settle(key: str, agent: str, **changes: Any) -> pb.SettleHold:
    values: dict[str, Any] = {"request_id": key, "agent_id": agent, "outcome": "ok"}
    return pb.SettleHold(**(values | changes))


async def test_a_hold_is_granted_and_settled(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(10 * FLAT_MICROS))[-1]
    async with stream(ledger) as gateway:
        request = pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), beat=7, holds=[hold("r1", agent)])
        placed = await gateway.ask(request)
        usage = pb.TokenUsage(input_tokens=3, output_tokens=4)
        ended = await gateway.ask(pb.ChargeRequest(settles=[settle("r1", agent, usage=usage)]))
    assert (placed.beat, placed.lapsed) == (7, False)
    assert placed.holds[0].granted == pb.HoldGranted(output_tokens=1, ceiling_micros=FLAT_MICROS)
    assert ended.settles[0].settled == pb.Settled(charged_micros=FLAT_MICROS, balance_micros=9 * FLAT_MICROS)


async def test_items_sent_again_on_a_new_stream_get_the_same_answers(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(3 * FLAT_MICROS))[-1]
    holder = ids.new(ids.Kind.HOLDER)
    holds = [hold(f"h{number}", agent) for number in range(5)]
    settles = [settle(f"h{number}", agent, usage=pb.TokenUsage(output_tokens=number)) for number in range(3)]
    void = pb.VoidHold(request_id="never", agent_id=agent, reason="gone")
    said: list[pb.ChargeResponse] = []
    for _ in range(2):
        async with stream(ledger) as gateway:
            placed = await gateway.ask(pb.ChargeRequest(holder_id=holder, beat=1, holds=holds))
            said.append(placed)
            said.append(await gateway.ask(pb.ChargeRequest(settles=settles, voids=[void])))
    first, ended, again, ended_again = said
    assert [one.WhichOneof("outcome") for one in first.holds] == ["granted"] * 3 + ["refused"] * 2
    for one in again.holds:
        assert getattr(one, one.WhichOneof("outcome") or "").replayed
        getattr(one, one.WhichOneof("outcome") or "").replayed = False
    assert sorted(again.holds, key=lambda one: one.request_id) == list(first.holds)
    assert [one.settled.charged_micros for one in ended.settles] == [FLAT_MICROS] * 3
    assert {one.settled.replayed for one in ended_again.settles} == {True}
    assert [one.voided.replayed for one in (*ended.voids, *ended_again.voids)] == [False, True]


async def test_what_was_in_flight_when_a_stream_broke_is_answered_on_the_next(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(50 * FLAT_MICROS))[-1]
    holder = ids.new(ids.Kind.HOLDER)
    holds = [hold(f"h{number}", agent) for number in range(100)]
    async with stream(ledger) as gateway:
        await gateway.call.write(pb.ChargeRequest(holder_id=holder, holds=holds))
    async with stream(ledger) as gateway:
        answers = await gateway.ask(pb.ChargeRequest(holder_id=holder, holds=holds))
    assert sum(one.HasField("granted") for one in answers.holds) == 50
    held = await ledger.database.value("SELECT count(*) FROM open_holds WHERE holder_id = $1", holder)
    assert held == 50


BAD_HOLDS: list[tuple[dict[str, Any], str]] = [
    ({"request_id": ""}, "INVALID_FIELD"),
    ({"request_id": "x" * 65}, "INVALID_FIELD"),
    ({"request_id": "a\x00b"}, "INVALID_FIELD"),
    ({"api_key_id": "a\x00b"}, "INVALID_FIELD"),
    ({"agent_id": "a\x00b"}, "STALE_PATH"),
    ({"agent_id": "agt_unknown"}, "STALE_PATH"),
    ({"path_version": 3}, "STALE_PATH"),
    ({"path_version": 2**63 - 1}, "STALE_PATH"),
    ({"routes": []}, "INVALID_FIELD"),
    ({"routes": [pb.Route(provider="mock", model="unknown")]}, "PRICE_NOT_FOUND"),
    ({"choices": 0}, "INVALID_FIELD"),
    ({"choices": 129}, "INVALID_FIELD"),
    ({"input_tokens_max": -1}, "INVALID_FIELD"),
    ({"output_tokens_wanted": 10_000_001}, "INVALID_FIELD"),
    ({"output_tokens_min": 2}, "INVALID_FIELD"),
]


async def test_a_bad_hold_fails_alone(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(100 * FLAT_MICROS))[-1]
    holds: list[pb.PlaceHold] = []
    for number, (changes, _) in enumerate(BAD_HOLDS):
        holds += [hold(f"good{number}", agent), hold(f"bad{number}", agent, **changes)]
    async with stream(ledger) as gateway:
        answers = await gateway.ask(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds))
    said = {one.request_id: one for one in answers.holds}
    for number, (changes, reason) in enumerate(BAD_HOLDS):
        assert said[f"good{number}"].HasField("granted")
        assert said[changes.get("request_id", f"bad{number}")].fault.reason == reason, changes


async def test_a_bad_settlement_or_void_fails_alone(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(100 * FLAT_MICROS))[-1]
    bad = [
        (settle("b1", agent, outcome="fine"), "INVALID_FIELD"),
        (settle("b2", agent, usage=pb.TokenUsage(input_tokens=-1)), "INVALID_FIELD"),
        (settle("b3", agent), "HOLD_NOT_FOUND"),
        (settle("b4", "agt_unknown"), "HOLD_NOT_FOUND"),
        (settle("b\x005", agent), "INVALID_FIELD"),
        (settle("voided", agent), "HOLD_ENDED"),
        (settle("route", agent, route=1), "INVALID_FIELD"),
    ]
    voids = [
        pb.VoidHold(request_id="v\x001", agent_id=agent),
        pb.VoidHold(request_id="v2", agent_id="agt_unknown"),
        pb.VoidHold(request_id="v3", agent_id=agent, reason="\x00"),
        pb.VoidHold(request_id="v4", agent_id=agent),
    ]
    async with stream(ledger) as gateway:
        holds = [hold(key, agent) for key in ("good", "voided", "route")]
        await gateway.ask(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds))
        await gateway.ask(pb.ChargeRequest(voids=[pb.VoidHold(request_id="voided", agent_id=agent)]))
        settles = [settle("good", agent), *(one for one, _ in bad)]
        answers = await gateway.ask(pb.ChargeRequest(settles=settles, voids=voids))
    said = {one.request_id: one for one in answers.settles}
    assert said["good"].settled.charged_micros == FLAT_MICROS
    assert {key.request_id: said[key.request_id].fault.reason for key, _ in bad} == {
        key.request_id: reason for key, reason in bad
    }
    assert {one.request_id: one.fault.reason for one in answers.voids} == {
        "v\x001": "INVALID_FIELD",
        "v2": "AGENT_NOT_FOUND",
        "v3": "INVALID_FIELD",
        "v4": "",
    }


@pytest.mark.parametrize("holder", ["", "somebody", "gtw_\x00"])
async def test_a_stream_names_its_holder(ledger: RunningLedger, holder: str) -> None:
    async with stream(ledger) as gateway:
        await gateway.call.write(pb.ChargeRequest(holder_id=holder, beat=1))
        assert await gateway.status() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("service", ["edge", "identity", "vault"])
async def test_only_a_gateway_may_charge(ledger: RunningLedger, service: str) -> None:
    async with stream(ledger, as_service=service) as other:
        assert await other.status() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_message_of_too_many_items_ends_its_stream(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(0))[-1]
    holds = [hold(f"h{number}", agent) for number in range(1_001)]
    async with stream(ledger) as gateway:
        await gateway.call.write(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds))
        assert await gateway.status() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_lapsed_holder_is_told_so(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(10 * FLAT_MICROS))[-1]
    holder = ids.new(ids.Kind.HOLDER)
    async with stream(ledger) as gateway:
        await gateway.ask(pb.ChargeRequest(holder_id=holder, beat=1))
        await ledger.database.execute("UPDATE leases SET lapsed_at = now() WHERE holder_id = $1", holder)
        placed = await gateway.ask(pb.ChargeRequest(holds=[hold("a", agent)]))
        assert (placed.lapsed, placed.holds[0].fault.reason) == (True, "LEASE_LAPSED")
        assert (await gateway.ask(pb.ChargeRequest(beat=2))).lapsed
    async with stream(ledger) as gateway:
        await gateway.call.write(pb.ChargeRequest(holder_id=holder))
        assert (await gateway.call.read()).lapsed
        assert await gateway.status() is grpc.StatusCode.OK
    assert not await charges.renew_lease(ledger.database, holder)


async def test_a_gateway_that_has_said_its_last_gets_every_answer(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(50 * FLAT_MICROS))[-1]
    async with stream(ledger) as gateway:
        holds = [hold(f"h{number}", agent) for number in range(20)]
        await gateway.call.write(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds))
        await gateway.call.done_writing()
        assert len((await gateway.answers(20)).holds) == 20
        assert await gateway.call.read() is grpc.aio.EOF
