from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ledger_svc import price_list, pricing
from ledger_svc.__main__ import PRICES
from ledger_svc.holds import Granted, Placing, Settled, Settling
from ledger_svc.price_book import PriceBook
from ledger_svc.pricing import Price, Usage
from ledger_svc.store import prices as store
from mandate.ledger.v1 import charges_pb2, prices_pb2_grpc
from mandate.ledger.v1 import prices_pb2 as pb
from mesh import caller, ids
from mesh.client import call
from mesh.errors import NotFound
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import asked, tenant
from tests.services.test_ledger_stream import hold, settle, stream

SOL, HAIKU = "openai/gpt-6-sol", "anthropic/claude-haiku-5-5"
UNPRICED = "openai/gpt-6.2-astra"
ROUTE = charges_pb2.Route(provider="openai", model="gpt-6-sol")
CREDIT = 1_000_000


def shipped(credits_per_usd: int = 100) -> list[Price]:
    return price_list.parse(PRICES.read_text(encoding="utf-8"), credits_per_usd)


@pytest.fixture(autouse=True)
async def as_shipped(ledger: RunningLedger) -> AsyncGenerator[None]:
    """Bring the shipped prices back after each test: all tests of a session share them."""
    yield
    await put(ledger, shipped())


async def put(ledger: RunningLedger, prices: list[Price]) -> dict[str, Price]:
    """Start the ledger with another list, as it were, and return what is in force then."""
    await store.put(ledger.database, prices)
    await ledger.ledger.prices.refresh()
    return {price.route: price for price in ledger.ledger.prices.all()}


async def rule(ledger: RunningLedger, organization_id: str, default_price: str) -> None:
    """Say which price an organization's unknown models have."""
    await ledger.database.execute(
        """
        INSERT INTO rules (organization_id, version, time_zone, uncertain, default_price,
                           request_id, actor, recorded_at)
        SELECT $1, count(*) + 1, 'UTC', 'list', $2, $3, 'test', now() FROM rules WHERE organization_id = $1
        """,
        organization_id,
        default_price,
        ids.new(ids.Kind.REQUEST),
    )
    await ledger.ledger.prices.refresh()


@asynccontextmanager
async def reader(
    ledger: RunningLedger, issuer: TestIssuer, organization_id: str
) -> AsyncGenerator[Callable[[str], Any]]:
    """Recompute charges as an owner of the organization."""
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        stub = prices_pb2_grpc.PriceServiceStub(channel)
        with caller.acting(issuer.person(**{organization_id: "owner"})):
            yield lambda key: call(
                stub.RecomputeCharge, pb.RecomputeChargeRequest(organization_id=organization_id, request_id=key)
            )


async def test_a_price_is_a_new_version_when_it_is_edited_and_only_then(ledger: RunningLedger) -> None:
    first = await put(ledger, shipped())
    assert await put(ledger, shipped()) == first
    edited = [
        replace(price, id=f"{price.id}x", request_micros=5) if price.route == SOL else price for price in shipped()
    ]
    second = await put(ledger, edited)
    assert {route for route, price in second.items() if price != first[route]} == {SOL}
    assert second[SOL].request_micros == 5
    assert await store.version(ledger.database, first[SOL].id) == first[SOL]


async def test_every_part_of_a_price_is_kept(ledger: RunningLedger) -> None:
    listed = {price.route: replace(price, id="") for price in shipped()}
    kept = {route: replace(price, id="") for route, price in (await put(ledger, shipped())).items()}
    assert kept == listed
    assert kept[SOL].tiers
    assert kept[HAIKU].tiers
    assert kept[UNPRICED].longer_unpriced


async def test_a_model_that_left_the_list_is_out_of_force_until_it_comes_back(ledger: RunningLedger) -> None:
    before = (await put(ledger, shipped()))[SOL]
    without = [price for price in shipped() if price.route != SOL]
    for _ in range(2):
        assert SOL not in await put(ledger, without)
    assert ledger.ledger.prices.in_force("openai", "gpt-6-sol") is None
    assert await PriceBook(ledger.database).version(before.id) == before
    back = (await put(ledger, shipped()))[SOL]
    assert replace(back, id="") == replace(before, id="")
    assert back.id.partition("#")[0] == before.id.partition("#")[0]
    assert back.id != before.id
    withdrawals = "SELECT count(*) FROM prices WHERE withdrawn AND provider || '/' || model = $1"
    assert await ledger.database.value(withdrawals, SOL) == 1
    assert SOL not in await put(ledger, without)
    assert await ledger.database.value(withdrawals, SOL) == 2


async def test_the_price_of_a_list_comes_back_into_force_with_its_exchange_rate(ledger: RunningLedger) -> None:
    first = await put(ledger, shipped(100))
    for credits_per_usd in (1, 100, 100):
        found = await put(ledger, shipped(credits_per_usd))
        assert found[SOL].rates.input == 2 * credits_per_usd * CREDIT
        assert found["mock/mock-model"] == first["mock/mock-model"]  # credits, whatever they are worth
    assert found[SOL].id.partition("#")[0] == first[SOL].id.partition("#")[0]
    assert found[SOL].id != first[SOL].id


async def test_replicas_that_start_at_once_take_turns_and_make_one_version_of_each_price(ledger: RunningLedger) -> None:
    count = "SELECT count(*) FROM prices"
    before = await ledger.database.value(count)
    async with ledger.database.transaction() as other:
        await other.execute("SELECT pg_advisory_xact_lock($1, 0)", store.PRICES_LOCK)
        starts = [asyncio.create_task(store.put(ledger.database, shipped(7))) for _ in range(3)]
        done, _ = await asyncio.wait(starts, timeout=0.2)
        assert not done
    await asyncio.gather(*starts)
    dollars = [price for price in shipped(7) if price.provider != "mock"]
    assert await ledger.database.value(count) == before + len(dollars)


async def test_a_hold_settles_at_its_own_version_after_the_exchange_rate_changed(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    organization, *_, agent = await ledger.tenant(1_000 * CREDIT)
    holder = ids.new(ids.Kind.HOLDER)
    usage = charges_pb2.TokenUsage(input_tokens=1_000, output_tokens=10)
    values: dict[str, Any] = {"routes": [ROUTE], "input_tokens_max": 1_000, "output_tokens_wanted": 10}
    old = (await put(ledger, shipped(100)))[SOL]
    async with stream(ledger) as gateway, reader(ledger, issuer, organization) as bill:
        await gateway.ask(charges_pb2.ChargeRequest(holder_id=holder, holds=[hold("old", agent, **values)]))
        new = (await put(ledger, shipped(1)))[SOL]
        await gateway.ask(charges_pb2.ChargeRequest(holds=[hold("new", agent, **values)]))
        settles = [settle(key, agent, usage=usage) for key in ("old", "new")]
        ended = await gateway.ask(charges_pb2.ChargeRequest(settles=settles))
        bills = {key: await bill(key) for key in ("old", "new")}
    charged = {one.request_id: one.settled.charged_micros for one in ended.settles}
    assert charged == {"old": 100 * (2_000 + 100), "new": 2_000 + 100}
    assert {key: (found.price.id, found.matches) for key, found in bills.items()} == {
        "old": (old.id, True),
        "new": (new.id, True),
    }


def line(kind: str, tokens: int, dollars: float) -> pb.BillLine:
    rate = round(dollars * 100 * CREDIT)
    number = pb.TokenClass.Value(f"TOKEN_CLASS_{kind}")
    return pb.BillLine(token_class=number, tokens=tokens, micros_per_mtok=rate, amount_picos=tokens * rate)


BILLS: list[tuple[dict[str, int], str, int, list[pb.BillLine], int]] = [
    ({"input_tokens": 3, "output_tokens": 1}, "ok", 0, [line("INPUT", 3, 2), line("OUTPUT", 1, 10)], 600 + 1_000),
    (
        {"input_tokens": 271_999, "cached_input_tokens": 1, "reasoning_tokens": 1},
        "client_gone",
        0,
        [line("INPUT", 271_999, 2), line("CACHED_INPUT", 1, 0.2), line("REASONING", 1, 10)],
        271_999 * 200 + 20 + 1_000,
    ),
    (
        {"input_tokens": 271_999, "cached_input_tokens": 1, "cache_write_tokens": 1, "output_tokens": 1},
        "ok",
        272_000,
        [line("INPUT", 271_999, 4), line("CACHED_INPUT", 1, 0.4), line("CACHE_WRITE", 1, 5), line("OUTPUT", 1, 15)],
        271_999 * 400 + 40 + 500 + 1_500,
    ),
    ({}, "upstream_error", 0, [], 0),
]


@pytest.mark.parametrize(("used", "outcome", "above", "lines", "cost"), BILLS)
async def test_a_charge_is_recomputed_line_by_line(  # noqa: PLR0917  # one parameter a column of the table
    ledger: RunningLedger,
    issuer: TestIssuer,
    used: dict[str, int],
    outcome: str,
    above: int,
    lines: list[pb.BillLine],
    cost: int,
) -> None:
    organization, *_, agent = await ledger.tenant(1_000 * CREDIT)
    placing = hold("a", agent, routes=[ROUTE], input_tokens_max=272_001, output_tokens_wanted=1)
    settling = settle("a", agent, outcome=outcome, usage=charges_pb2.TokenUsage(**used))
    async with stream(ledger) as gateway, reader(ledger, issuer, organization) as bill:
        request = charges_pb2.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=[placing])
        granted = (await gateway.ask(request)).holds[0].granted
        ended = await gateway.ask(charges_pb2.ChargeRequest(settles=[settling]))
        found = await bill("a")
    assert granted.ceiling_micros == 272_001 * 500 + 1_500
    assert ended.settles[0].settled.charged_micros == cost
    assert (found.above_tokens, list(found.lines), found.request_micros) == (above, lines, 0)
    assert (found.cost_micros, found.charged_micros, found.ceiling_micros) == (cost, cost, granted.ceiling_micros)
    assert (found.overage_micros, found.breach_micros, found.matches) == (0, 0, True)
    assert (found.provider, found.model, found.price.source_date) == ("openai", "gpt-6-sol", "2026-09-22")


@pytest.mark.parametrize(("wallet", "overage", "breach"), [(10_000, 1_000, 0), (1_300, 300, 700), (1_000, 0, 1_000)])
async def test_a_bill_says_who_paid_what_was_used_above_the_hold(
    ledger: RunningLedger, issuer: TestIssuer, wallet: int, overage: int, breach: int
) -> None:
    organization, *_, agent = await ledger.tenant(wallet)
    placing = hold("a", agent, routes=[ROUTE], output_tokens_wanted=1)
    settling = settle("a", agent, usage=charges_pb2.TokenUsage(output_tokens=2))
    async with stream(ledger) as gateway, reader(ledger, issuer, organization) as bill:
        await gateway.ask(charges_pb2.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=[placing]))
        await gateway.ask(charges_pb2.ChargeRequest(settles=[settling]))
        found = await bill("a")
    assert (found.cost_micros, found.ceiling_micros, found.charged_micros) == (2_000, 1_000, 1_000 + overage)
    assert (found.overage_micros, found.breach_micros, found.matches) == (overage, breach, True)


async def test_a_charge_that_is_not_what_its_price_says_does_not_match(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    spender = await tenant(ledger, 10_000)
    await spender.place("a", 5)
    wrong = replace(spender.settling("a", 5), cost_micros=999)
    await asked(spender.commits.settle, spender.organization, wrong)
    async with reader(ledger, issuer, spender.organization) as bill:
        found = await bill("a")
    assert (found.cost_micros, found.charged_micros, found.matches) == (1_000, 999, False)


async def test_only_what_was_settled_for_ones_own_organization_is_recomputed(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    spender, stranger = await tenant(ledger, 10_000), (await ledger.tenant(0))[0]
    await spender.place("a", 5)
    async with reader(ledger, issuer, spender.organization) as bill:
        with pytest.raises(NotFound) as missing:
            await bill("a")
        assert missing.value.reason == "USAGE_NOT_FOUND"
        await spender.settle("a", 5)
        assert (await bill("a")).matches
    async with reader(ledger, issuer, stranger) as bill:
        with pytest.raises(NotFound):
            await bill("a")
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        request = pb.RecomputeChargeRequest(organization_id=spender.organization, request_id="a")
        with caller.acting(issuer.person(**{stranger: "owner"})), pytest.raises(NotFound) as hidden:
            await call(prices_pb2_grpc.PriceServiceStub(channel).RecomputeCharge, request)
    assert hidden.value.reason != "USAGE_NOT_FOUND"


async def test_the_tiers_of_a_price_are_listed(ledger: RunningLedger) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="gateway") as channel:
        listed = await call(prices_pb2_grpc.PriceServiceStub(channel).ListPrices, pb.ListPricesRequest())
    haiku = next(price for price in listed.prices if price.model == "claude-haiku-5-5")
    assert (haiku.context_tokens, haiku.input_micros_per_mtok) == (1_000_000, 10 * CREDIT)
    assert list(haiku.tiers) == [
        pb.PriceTier(
            above_tokens=100_000,
            input_micros_per_mtok=50 * CREDIT,
            cached_input_micros_per_mtok=5 * CREDIT,
            cache_write_micros_per_mtok=62_500_000,
            output_micros_per_mtok=250 * CREDIT,
            reasoning_micros_per_mtok=250 * CREDIT,
        )
    ]


async def test_prices_say_where_longer_prompts_have_none(ledger: RunningLedger) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="gateway") as channel:
        listed = await call(prices_pb2_grpc.PriceServiceStub(channel).ListPrices, pb.ListPricesRequest())
    unpriced = {f"{price.provider}/{price.model}" for price in listed.prices if price.longer_unpriced}
    assert unpriced == {UNPRICED, "openai/gpt-6.2-sol"}


@pytest.mark.parametrize(
    ("default", "provider", "model", "price"),
    [
        ("", "openai", "gpt-6-sol", SOL),
        ("", "openai", "gpt-7", None),
        (HAIKU, "openai", "gpt-6-sol", SOL),
        (HAIKU, "openai", "gpt-7", HAIKU),
        (HAIKU, "elsewhere", "vendor/gpt-7:latest", HAIKU),
        (HAIKU, "openai", "gpt-7,gpt-8", None),
        (HAIKU, "openai", "gpt-7#2", None),
        (HAIKU, "", "gpt-7", None),
        ("openai/gpt-7", "openai", "gpt-8", None),
    ],
)
async def test_an_unknown_model_has_the_organizations_default_price_or_none(
    ledger: RunningLedger, default: str, provider: str, model: str, price: str | None
) -> None:
    organization = (await ledger.tenant(0))[0]
    if default:
        await rule(ledger, organization, default)
    found = await ledger.ledger.prices.for_route(organization, provider, model)
    if price is None or found is None:
        assert found is price
        return
    listed = ledger.ledger.prices.in_force(*price.split("/"))
    assert listed is not None
    assert found == replace(listed, provider=provider, model=model)
    assert (await ledger.ledger.prices.version(found.id, found.route)) == found


async def test_a_default_price_is_the_newest_rule_and_ends_with_its_model(ledger: RunningLedger) -> None:
    organization, other = (await ledger.tenant(0))[0], (await ledger.tenant(0))[0]
    book = ledger.ledger.prices

    async def default_of(one: str) -> str | None:
        found = await asyncio.gather(*(book.for_route(one, "openai", "gpt-7") for _ in range(20)))
        assert len({price and price.id for price in found}) == 1
        return found[0] and found[0].id

    await rule(ledger, organization, HAIKU)
    first = await default_of(organization)
    assert first is not None
    assert first.startswith(HAIKU)
    assert await default_of(other) is None
    await rule(ledger, organization, SOL)
    second = await default_of(organization)
    assert second is not None
    assert second.startswith(SOL)
    await put(ledger, [price for price in shipped() if price.route != SOL])
    assert await default_of(organization) is None


async def test_a_completion_at_a_default_price_keeps_its_own_models_name(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    spender = await tenant(ledger, 10_000)
    await rule(ledger, spender.organization, HAIKU)
    price = await ledger.ledger.prices.for_route(spender.organization, "openai", "gpt-7")
    assert price
    usage = Usage(output_tokens=3)
    bound = pricing.bound([price], 0, 3, 1)
    assert isinstance(bound, pricing.Bound)
    placing = Placing("a", spender.holder, spender.path[-1], 4, "key", (price,), 0, 3, 3, 1, bound)
    assert isinstance(await asked(spender.commits.place, spender.organization, placing, 0), Granted)
    cost = pricing.cost_micros(price, usage, "ok")
    settling = Settling("a", price, usage, cost, False, "ok", 200, 5, 1, 2, False)
    assert isinstance(await asked(spender.commits.settle, spender.organization, settling), Settled)
    routes = await ledger.database.value(
        "SELECT routes FROM holds WHERE organization_id = $1 AND request_id = 'a'", spender.organization
    )
    assert routes == "openai/gpt-7"
    async with reader(ledger, issuer, spender.organization) as bill:
        found = await bill("a")
    assert (found.provider, found.model, found.price.id, found.matches) == ("openai", "gpt-7", price.id, True)
    assert f"{found.price.provider}/{found.price.model}" == HAIKU
