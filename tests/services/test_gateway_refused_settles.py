from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from gateway_svc import charging
from gateway_svc.holds import Place, Report, Route
from gateway_svc.settlement import Outcome, Settlement
from gateway_svc.usage import TokenUsage, UsageSource
from mesh import ids
from mesh.chain.access import organizations_only
from mesh.errors import FailedPrecondition, Internal, InvalidArgument, MeshError, Unavailable
from mesh.testing import House, TestIssuer
from tests.fakes.charges import FakeCharges

AGENT = ids.new(ids.Kind.AGENT)


def report() -> Report:
    return Report(
        request_id=ids.new(ids.Kind.REQUEST),
        agent_id=AGENT,
        settlement=Settlement(
            TokenUsage(3, output_tokens=5),
            estimated=False,
            outcome=Outcome.OK,
            http_status=200,
            source=UsageSource.REPORTED,
        ),
        ceiling=TokenUsage(100, output_tokens=80),
        latency_ms=1,
        overhead_ms=1,
        first_token_ms=0,
        streamed=False,
    )


@asynccontextmanager
async def holder(house: House, ledger: FakeCharges) -> AsyncGenerator[charging.Ledger]:
    async with (
        house.serving("ledger", [ledger.registration()], TestIssuer(), organizations_only) as address,
        house.channel("ledger", address, as_service="gateway") as channel,
    ):
        holder = charging.Ledger(channel)
        running = asyncio.create_task(holder.run())
        yield holder
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_report_that_the_ledger_cannot_read_is_replaced_by_all_that_was_held(house: House) -> None:
    ledger = FakeCharges(InvalidArgument("INVALID_FIELD", "usage: must be less", field="usage.input_tokens"))
    async with holder(house, ledger) as gateway:
        assert (await gateway.settle(report())).charged_micros == 1
    told = [(settle.usage.input_tokens, settle.usage.output_tokens, settle.estimated) for settle in ledger.settles]
    assert told == [(3, 5, False), (100, 80, True)]


@pytest.mark.parametrize("fault", [Internal("INTERNAL", "x"), Unavailable("DATABASE_UNAVAILABLE", "x")])
async def test_a_settle_that_the_ledger_could_not_write_is_sent_again_ever_more_slowly(
    house: House, fault: MeshError
) -> None:
    ledger = FakeCharges(fault, fault, fault)
    async with holder(house, ledger) as gateway:
        started = asyncio.get_running_loop().time()
        assert (await gateway.settle(report())).charged_micros == 1
        assert asyncio.get_running_loop().time() - started >= 0.7
    assert len(ledger.settles) == 4


async def test_a_hold_that_came_to_another_end_is_not_settled_again(house: House) -> None:
    ledger = FakeCharges(FailedPrecondition("HOLD_ENDED", "the hold was resolved", how="resolved"))
    async with holder(house, ledger) as gateway:
        with pytest.raises(Unavailable):
            await gateway.settle(report())
        await gateway.drain(1)
    assert len(ledger.settles) == 1


async def test_a_settle_is_on_its_way_before_anybody_waits_for_it(house: House) -> None:
    ledger = FakeCharges()
    async with holder(house, ledger) as gateway:
        await gateway.hold(place())
        charging_ = asyncio.ensure_future(gateway.settle(report()))
        charging_.cancel()
        await gateway.drain(5)
    assert len(ledger.settles) == 1


async def test_a_settle_that_nobody_waits_for_any_more_is_still_waited_for_at_the_end(house: House) -> None:
    away = Unavailable("DATABASE_UNAVAILABLE", "x")
    ledger = FakeCharges(away, away)
    async with holder(house, ledger) as gateway:
        charging_ = asyncio.ensure_future(gateway.settle(report()))
        await asyncio.sleep(0.05)  # it waits for an answer by now: the third try is 0.3 s after the first
        charging_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await charging_
        assert len(ledger.settles) < 3
        await gateway.drain(5)
    assert len(ledger.settles) == 3


def place() -> Place:
    return Place(ids.new(ids.Kind.REQUEST), AGENT, 1, "", (Route("mock", "mock-model"),), 1, 16, 16, 1)
