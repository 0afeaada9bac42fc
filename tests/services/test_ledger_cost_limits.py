from __future__ import annotations

import asyncio

import orjson
import pytest

from ledger_svc.holds import Differs, Granted, NoHold, Placed, Refusal, Refused, Voided
from ledger_svc.store import charges
from mandate.ledger.v1 import charges_pb2 as pb
from mesh import ids
from mesh.client import call
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, tenant
from tests.services.test_ledger_stream import hold, stream
from tests.services.test_ledger_unary import charging

MODEL = [pb.Route(provider="mock", model="mock-model")]
GRANTED = Granted(4, 4 * TOKEN_MICROS, replayed=False)
LIMITED = Refused(Refusal.COST_LIMIT, "", "", TOKEN_MICROS // 2, replayed=False)
BETWEEN = 3 * TOKEN_MICROS // 2  # what two tokens cost is half a token more


@pytest.mark.parametrize(
    ("cost_max_micros", "tokens"),
    [(0, 9), (10**15, 9), (9 * TOKEN_MICROS, 9), (9 * TOKEN_MICROS - 1, 8), (2 * TOKEN_MICROS, 2)],
)
async def test_as_much_output_is_granted_as_the_limit_on_cost_allows(
    ledger: RunningLedger, cost_max_micros: int, tokens: int
) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    for replayed in (False, True):
        placed = await spender.place("a", 9, 2, cost_max_micros=cost_max_micros)
        assert placed == Granted(tokens, tokens * TOKEN_MICROS, replayed)
    assert await spender.wallet() == (100 * TOKEN_MICROS, tokens * TOKEN_MICROS)


@pytest.mark.parametrize(("credits_tokens", "limit_tokens"), [(4, 6), (6, 4), (4, 4)])
async def test_headroom_and_the_limit_on_cost_clamp_together(
    ledger: RunningLedger, credits_tokens: int, limit_tokens: int
) -> None:
    spender = await tenant(ledger, credits_tokens * TOKEN_MICROS)
    assert await spender.place("a", 9, 2, cost_max_micros=limit_tokens * TOKEN_MICROS) == GRANTED


async def test_a_request_above_its_own_limit_is_refused_for_ever_and_touches_nothing(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    budget = await spender.budget(10 * TOKEN_MICROS, auto_disable=True)
    for replayed in (False, True):
        placed = await spender.place("a", 9, 2, cost_max_micros=BETWEEN)
        assert placed == Refused(Refusal.COST_LIMIT, "", "", TOKEN_MICROS // 2, replayed)
    assert await spender.wallet() == (100 * TOKEN_MICROS, 0)
    assert await spender.spent(budget) == (0, 0, False)


async def test_a_request_above_its_own_limit_is_told_so_whatever_there_is(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 0)
    assert await spender.place("a", 9, 2, cost_max_micros=BETWEEN, wait_ms=250) == LIMITED
    budget = await spender.budget(0, auto_disable=True)
    assert await spender.place("b", 9, 2, cost_max_micros=BETWEEN) == LIMITED
    assert await spender.spent(budget) == (0, 0, False)


async def test_a_request_within_its_limit_may_still_find_the_wallet_empty(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, TOKEN_MICROS)
    refused = await spender.place("a", 9, 2, cost_max_micros=5 * TOKEN_MICROS)
    assert refused == Refused(Refusal.EXHAUSTED, "wallet", "", TOKEN_MICROS, replayed=False)


async def test_a_key_that_comes_again_with_another_limit_is_another_request(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    limits = {"none": 0, "granted": 4 * TOKEN_MICROS, "refused": BETWEEN}
    for key, limit in limits.items():
        await spender.place(key, 9, 2, cost_max_micros=limit)
    for key, limit in limits.items():
        again = await spender.place(key, 9, 2, cost_max_micros=limit + 1)
        assert again == Differs("cost_max_micros"), key


async def test_one_request_above_its_limit_leaves_its_neighbours_in_the_commit_alone(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    limits = (0, 4 * TOKEN_MICROS, BETWEEN, 4 * TOKEN_MICROS)
    items = [(spender.placing(f"h{number}", 9, 2, cost_max_micros=limit), True) for number, limit in enumerate(limits)]
    placed = await charges.place(ledger.database, spender.organization, items)
    assert placed == [Granted(9, 9 * TOKEN_MICROS, replayed=False), GRANTED, LIMITED, GRANTED]
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_two_limits_under_one_key_at_once_share_no_answer(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    asks = [spender.place("a", 9, 2, cost_max_micros=tokens * TOKEN_MICROS) for tokens in (4, 4, 5)]
    answers: list[Placed] = await asyncio.gather(*asks)
    assert answers == [GRANTED, Granted(4, 4 * TOKEN_MICROS, replayed=True), Differs("cost_max_micros")]


async def test_a_void_and_a_settle_of_what_its_limit_refused_find_no_hold(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    await spender.place("a", 9, 2, cost_max_micros=BETWEEN)
    assert await spender.settle("a", 1) == NoHold()
    assert await spender.void("a") == Voided(replayed=True)


async def test_a_refusal_for_its_limit_is_a_fact_of_the_audit(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    await spender.place("a", 9, 2, cost_max_micros=BETWEEN)
    async with owner(ledger.house) as connection:
        line = await connection.fetchval(
            "SELECT line FROM audit WHERE organization_id = $1 ORDER BY seq DESC LIMIT 1", spender.organization
        )
    fact = orjson.loads(str(line))
    assert (fact["action"], fact["subject"]) == ("hold.refused", "a")
    assert fact["detail"] == {"account": "", "short_micros": TOKEN_MICROS // 2, "status": Refusal.COST_LIMIT}


def asks_of(spender: Tenant) -> list[pb.PlaceHold]:
    values = {"routes": MODEL, "output_tokens_wanted": 9, "output_tokens_min": 2}
    limits = {"a": 0, "b": 4 * TOKEN_MICROS, "c": BETWEEN, "d": -1, "e": 10**15 + 1}
    return [hold(key, spender.path[-1], cost_max_micros=limit, **values) for key, limit in limits.items()]


def check_answers(answers: dict[str, pb.HoldAnswer]) -> None:
    assert [answers[key].granted.output_tokens for key in "ab"] == [9, 4]
    assert answers["c"].refused.refusal == pb.HOLD_REFUSAL_COST_LIMIT
    assert (answers["c"].refused.account_id, answers["c"].refused.short_micros) == ("", TOKEN_MICROS // 2)
    for key in "de":
        assert (answers[key].fault.reason, answers[key].fault.metadata["field"]) == ("INVALID_FIELD", "cost_max_micros")


async def test_limits_on_cost_travel_without_a_stream(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    async with charging(ledger) as stub:
        request = pb.PlaceHoldsRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=asks_of(spender))
        check_answers({one.request_id: one for one in (await call(stub.PlaceHolds, request)).holds})


async def test_limits_on_cost_travel_by_the_stream(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    async with stream(ledger) as gateway:
        request = pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=asks_of(spender))
        check_answers({one.request_id: one for one in (await gateway.ask(request)).holds})
