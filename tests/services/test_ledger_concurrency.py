from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import grpc
import pytest

from ledger_svc.holds import Granted, Placed, Refusal, Refused
from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from mesh.client import call
from tests.conftest import RunningLedger
from tests.services.ledger_processes import PATIENT_MS, Ledgers, charge
from tests.services.ledger_running import FLAT_MICROS, TOKEN_MICROS, Tenant, check_books, owner, replica, tenant
from tests.services.test_ledger_stream import hold


async def test_thirty_two_spenders_over_two_replicas_spend_a_wallet_exactly(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as one, replica(ledger.house) as two:
        first = await tenant(ledger, 137 * FLAT_MICROS)
        spenders = [replace(first, commits=(one, two)[number % 2]) for number in range(32)]

        async def spend(number: int) -> int:
            granted = 0
            for turn in range(6):
                key = f"{number}.{turn}"
                if isinstance(await spenders[number].place(key, model="mock-flat"), Granted):
                    granted += 1
                    await spenders[number].settle(key, 1, model="mock-flat")
            return granted

        assert sum(await asyncio.gather(*map(spend, range(32)))) == 137
    assert await first.wallet() == (0, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, first.organization)


TENTH = {
    "routes": [pb.Route(provider="mock", model="mock-model")],
    "output_tokens_wanted": 500,
    "output_tokens_min": 500,
}
Outcome = pb.HoldAnswer | pb.PostChargeAnswer


async def over_streams(channels: list[grpc.aio.Channel], agents: list[str]) -> list[Outcome]:
    """Ask on all streams at once, a message for each hold."""

    async def ask(channel: grpc.aio.Channel, own: list[tuple[int, str]]) -> list[Outcome]:
        stream: Any = rpc.ChargeServiceStub(channel).Charge()
        for number, agent in own:
            place = hold(f"h{number}", agent, **TENTH)
            await stream.write(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=[place]))
        heard: list[Outcome] = []
        async with asyncio.timeout(30):
            while len(heard) < len(own):
                heard += (await stream.read()).holds
        stream.cancel()
        return heard

    shares = [list(enumerate(agents))[place :: len(channels)] for place in range(len(channels))]
    return [answer for heard in await asyncio.gather(*map(ask, channels, shares)) for answer in heard]


async def without_a_stream(channels: list[grpc.aio.Channel], agents: list[str]) -> list[Outcome]:
    stubs: list[Any] = [rpc.ChargeServiceStub(channel) for channel in channels]
    holder = ids.new(ids.Kind.HOLDER)

    async def ask(number: int, agent: str) -> Outcome:
        request = pb.PlaceHoldsRequest(holder_id=holder, holds=[hold(f"h{number}", agent, **TENTH)])
        return (await call(stubs[number % len(stubs)].PlaceHolds, request, timeout_ms=PATIENT_MS)).holds[0]

    return await asyncio.gather(*(ask(number, agent) for number, agent in enumerate(agents)))


async def in_one_phase(channels: list[grpc.aio.Channel], agents: list[str]) -> list[Outcome]:
    stubs: list[Any] = [rpc.ChargeServiceStub(channel) for channel in channels]

    async def ask(number: int, agent: str) -> Outcome:
        request = pb.PostChargesRequest(charges=[charge(f"h{number}", agent)])
        return (await call(stubs[number % len(stubs)].PostCharges, request, timeout_ms=PATIENT_MS)).charges[0]

    return await asyncio.gather(*(ask(number, agent) for number, agent in enumerate(agents)))


async def beside(first: Tenant, level: int) -> str:
    """Make another agent below the node at `level` of the first one's path, with nothing else above it in common."""
    if level == 3:
        return first.path[-1]
    kinds = (ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT)
    *above, agent = [*first.path[1 : level + 1], *(ids.new(kind) for kind in kinds[level:])]
    return (await first.under(agent, *above)).path[-1]


@pytest.mark.parametrize(
    ("way", "level", "refusal"),
    [
        *((over_streams, level, pb.HOLD_REFUSAL_IN_FLIGHT) for level in range(4)),
        *((without_a_stream, level, pb.HOLD_REFUSAL_IN_FLIGHT) for level in range(4)),
        (in_one_phase, 0, pb.HOLD_REFUSAL_EXHAUSTED),
        (in_one_phase, 3, pb.HOLD_REFUSAL_EXHAUSTED),
    ],
)
async def test_of_a_thousand_tenths_at_once_a_cap_of_five_admits_exactly_fifty(
    ledgers: Ledgers,
    way: Callable[[list[grpc.aio.Channel], list[str]], Awaitable[list[Outcome]]],
    level: int,
    refusal: int,
) -> None:
    first = await tenant(ledgers.own, 1_000 * 1_000_000)
    budget = await first.budget(5_000_000, target=first.path[level])
    agents = [first.path[-1], *[await beside(first, level) for _ in range(3)]]
    async with ledgers.channels(4) as channels:
        answers = await way(channels, [agents[number % 4] for number in range(1_000)])
    said = Counter(answer.WhichOneof("outcome") for answer in answers)
    assert said["refused"] == 950
    assert said["granted"] + said["posted"] == 50
    assert {(one.refused.refusal, one.refused.account_id) for one in answers if one.HasField("refused")} == {
        (refusal, budget)
    }
    settled, held, _ = await first.spent(budget)
    assert settled + held == 5_000_000
    async with owner(ledgers.own.house) as connection:
        await check_books(connection, first.organization)


async def test_the_same_key_at_two_replicas_is_one_hold(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as one, replica(ledger.house) as two:
        first = await tenant(ledger, 100 * FLAT_MICROS)
        both = [replace(first, commits=one), replace(first, commits=two)]
        keys = [f"h{number}" for number in range(40)]
        placed = await asyncio.gather(*(spender.place(key, model="mock-flat") for key in keys for spender in both))
        assert sum(isinstance(answer, Granted) and not answer.replayed for answer in placed) == 40
        settled = await asyncio.gather(*(spender.settle(key, 1, model="mock-flat") for key in keys for spender in both))
        assert sum(not getattr(answer, "replayed", True) for answer in settled) == 40
    assert await first.wallet() == (60 * FLAT_MICROS, 0)


@pytest.mark.parametrize("how", ["settle", "void"])
async def test_a_hold_waits_for_headroom_that_another_gives_back(ledger: RunningLedger, how: str) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)
    waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
    await asyncio.sleep(0.03)
    assert not waiting.done()
    await (spender.settle("first", 2) if how == "settle" else spender.void("first"))
    assert await waiting == Granted(5, 5 * TOKEN_MICROS, replayed=False)


async def test_a_hold_waits_for_headroom_that_another_replica_gives_back(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as other:
        spender = await tenant(ledger, 10 * TOKEN_MICROS)
        await spender.place("first", 10)
        waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
        await asyncio.sleep(0.03)
        await replace(spender, commits=other).settle("first", 2)
        assert isinstance(await waiting, Granted)


async def test_without_headroom_the_wait_ends_in_flight_and_exhaustion_does_not_wait(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)

    async def timed(key: str, tokens: int) -> tuple[Placed, float]:
        began = monotonic()
        return await spender.place(key, tokens, wait_ms=250), monotonic() - began

    patient, waited = await timed("second", 5)
    exhausted, at_once = await timed("third", 11)
    assert isinstance(patient, Refused)
    assert isinstance(exhausted, Refused)
    assert (patient.refusal, exhausted.refusal) == (Refusal.IN_FLIGHT, Refusal.EXHAUSTED)
    assert 0.25 <= waited < 1
    assert at_once < 0.2
    assert await spender.place("second", 5) == replace(patient, replayed=True)


async def test_a_waiting_hold_whose_caller_is_gone_is_never_placed(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)
    waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
    await asyncio.sleep(0.03)
    waiting.cancel()
    await spender.void("first")
    await spender.commits.drain()
    assert await spender.wallet() == (10 * TOKEN_MICROS, 0)
