from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from ledger_svc.pricing import Price, Rates, Tier
from ledger_svc.store import wallets
from mandate.ledger.v1 import charges_pb2 as pb
from mesh import ids
from mesh.db import Row
from tests.conftest import RunningLedger
from tests.services.test_ledger_prices import put, shipped
from tests.services.test_ledger_stream import hold, settle, stream

CREDIT = 1_000_000
STEADY = Price("steady@1", "one", "steady", Rates(*[10 * CREDIT] * 5), 0, 10**6, 10**6, "test", "2026-01-01")
TIERED = replace(
    STEADY, id="tiered@1", provider="two", model="tiered", rates=Rates(*[4 * CREDIT] * 5),
    tiers=(Tier(1_000, Rates(*[20 * CREDIT] * 5)),),
)  # fmt: skip
ROUTES = [pb.Route(provider="one", model="steady"), pb.Route(provider="two", model="tiered")]


@pytest.fixture(autouse=True)
async def prices(ledger: RunningLedger) -> AsyncGenerator[dict[str, Price]]:
    """Put two models in force of which now one is dearer and now the other."""
    yield await put(ledger, [*shipped(), STEADY, TIERED])
    await put(ledger, shipped())


def ask(key: str, agent: str, **changes: Any) -> pb.PlaceHold:
    values = {"routes": ROUTES, "input_tokens_max": 100, "output_tokens_wanted": 10, "output_tokens_min": 2}
    return hold(key, agent, **(values | changes))


def opening(*holds: pb.PlaceHold) -> pb.ChargeRequest:
    return pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds)


async def used(ledger: RunningLedger, organization: str) -> list[Row]:
    return await wallets.usage(ledger.database, organization, None, 10)


@pytest.mark.parametrize("routes", [ROUTES, ROUTES[::-1]])
@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "choices", "ceiling"),
    [
        (100, 10, 1, 10 * (100 + 10)),
        (100, 10, 3, 10 * (100 + 30)),
        (1_000, 10, 1, 10 * (1_000 + 10)),  # the last that the dearer tier does not reach
        (1_001, 10, 1, 20 * (1_001 + 10)),
    ],
)
async def test_a_hold_over_several_routes_is_held_at_the_dearest_for_its_size(
    ledger: RunningLedger, routes: list[pb.Route], input_tokens: int, output_tokens: int, choices: int, ceiling: int
) -> None:
    organization, *_, agent = await ledger.tenant(CREDIT)
    changes = {"input_tokens_max": input_tokens, "output_tokens_wanted": output_tokens, "choices": choices}
    async with stream(ledger) as gateway:
        (granted,) = (await gateway.ask(opening(ask("a", agent, routes=routes, **changes)))).holds
    assert (granted.granted.output_tokens, granted.granted.ceiling_micros) == (output_tokens, ceiling)
    assert (await wallets.balance(ledger.database, organization)).held_micros == ceiling


@pytest.mark.parametrize(
    ("route", "name", "input_tokens", "charged"),
    [
        (0, "one/steady", 100, 10 * 105),
        (1, "two/tiered", 100, 4 * 105),
        (0, "one/steady", 2_000, 10 * 2_005),
        (1, "two/tiered", 2_000, 20 * 2_005),
    ],
)
async def test_a_settle_bills_the_route_that_was_taken_at_its_own_version(
    ledger: RunningLedger, prices: dict[str, Price], route: int, name: str, input_tokens: int, charged: int
) -> None:
    organization, *_, agent = await ledger.tenant(CREDIT)
    usage = pb.TokenUsage(input_tokens=input_tokens, output_tokens=5)
    async with stream(ledger) as gateway:
        await gateway.ask(opening(ask("a", agent, input_tokens_max=2_000)))
        dearer = [replace(price, id=f"{price.id}x", request_micros=7) for price in (STEADY, TIERED)]
        await put(ledger, [*shipped(), *dearer])
        settles = [settle("a", agent, route=route, usage=usage)]
        (settled,) = (await gateway.ask(pb.ChargeRequest(settles=settles))).settles
    assert settled.settled.charged_micros == charged
    (row,) = await used(ledger, organization)
    assert (f"{row['provider']}/{row['model']}", row["price_id"]) == (name, prices[name].id)
    assert (await wallets.balance(ledger.database, organization)).held_micros == 0


@pytest.mark.parametrize("route", [-1, 2, 2**31 - 1])
async def test_a_settle_of_a_route_that_its_hold_has_not_is_refused_and_the_hold_stays(
    ledger: RunningLedger, route: int
) -> None:
    organization, *_, agent = await ledger.tenant(CREDIT)
    async with stream(ledger) as gateway:
        await gateway.ask(opening(ask("a", agent)))
        for _ in range(2):  # from memory, then from the table
            (refused,) = (await gateway.ask(pb.ChargeRequest(settles=[settle("a", agent, route=route)]))).settles
            assert (refused.fault.reason, refused.fault.metadata["field"]) == ("INVALID_FIELD", "route")
        assert await used(ledger, organization) == []
        (settled,) = (await gateway.ask(pb.ChargeRequest(settles=[settle("a", agent, route=1)]))).settles
    assert settled.HasField("settled")
    assert [row["model"] for row in await used(ledger, organization)] == ["tiered"]


@pytest.mark.parametrize(
    ("input_tokens", "cost_max", "output_tokens"),
    [(100, 1_100, 10), (100, 1_099, 9), (100, 1_020, 2), (2_000, 40_199, 9), (2_000, 40_040, 2)],
)
async def test_a_limit_on_cost_holds_for_the_dearest_route(
    ledger: RunningLedger, input_tokens: int, cost_max: int, output_tokens: int
) -> None:
    agent = (await ledger.tenant(CREDIT))[-1]
    async with stream(ledger) as gateway:
        limited = ask("a", agent, input_tokens_max=input_tokens, cost_max_micros=cost_max)
        (granted,) = (await gateway.ask(opening(limited))).holds
    assert granted.granted.output_tokens == output_tokens
    assert 0 < granted.granted.ceiling_micros <= cost_max


async def test_a_limit_on_cost_that_the_dearest_route_passes_says_by_how_much(ledger: RunningLedger) -> None:
    agent = (await ledger.tenant(CREDIT))[-1]
    async with stream(ledger) as gateway:
        (refused,) = (await gateway.ask(opening(ask("a", agent, choices=3, cost_max_micros=900)))).holds
    assert refused.refused.refusal == pb.HOLD_REFUSAL_COST_LIMIT
    assert refused.refused.short_micros == 10 * (100 + 2 * 3) - 900
