from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mandate.ledger.v1 import wallets_pb2, wallets_pb2_grpc
from mesh import caller, ids
from mesh.caller import Caller
from mesh.client import call
from mesh.errors import AlreadyExists
from mesh.testing import TestIssuer
from tests.services.ledger_processes import PATIENT_MS, Ledgers, charge
from tests.services.ledger_running import Tenant, check_books, owner, tenant
from tests.services.test_ledger_stream import hold, settle

TIMES, CONNECTIONS, SHARE = 5, 4, 40  # how often each key is asked, over how many connections, items a call
RICH = 10**14
LUNCH = 10_000  # output tokens that fit the wallet; ten million do not

Altered = tuple[str, dict[str, Any]]  # the field, and what it says instead


@dataclass(frozen=True)
class Ask:
    """One of the times that a key is asked, as it was first meant (altered: "") or with one field changed."""

    key: str
    altered: str
    message: Any


@dataclass(frozen=True)
class Said:
    """What was answered: a replay or not, and the whole of it; or the field that differs."""

    ask: Ask
    outcome: str
    replayed: bool = False
    differs: str = ""


Send = Callable[[int, Sequence[Ask]], Awaitable[list[Said]]]


def asks_of(keys: Sequence[str], build: Callable[..., Any], altered: Sequence[Altered]) -> list[Ask]:
    """Return each key five times; one of ten asks is altered, by each field in turn."""
    fields, asks = cycle(altered), list[Ask]()
    for number, key in enumerate(keys):
        asks += [Ask(key, "", build(number))] * (TIMES - number % 2)
        if number % 2:
            field, changes = next(fields)
            asks.append(Ask(key, field, build(number, **changes)))
    random.Random(5).shuffle(asks)  # noqa: S311  # the same storm each time
    return asks


async def storm(asks: Sequence[Ask], send: Send) -> list[Said]:
    """Send all asks at once, in calls of forty, over the four connections in turn."""
    parts = [asks[start : start + SHARE] for start in range(0, len(asks), SHARE)]
    said = await asyncio.gather(*(send(number % CONNECTIONS, part) for number, part in enumerate(parts)))
    return [one for part in said for one in part]


def check(said: Sequence[Said], altered: Sequence[Altered]) -> None:
    """Who said what the first one of a key said heard the same; who said something else heard which field differs."""
    by_key: dict[str, list[Said]] = {}
    for one in said:
        by_key.setdefault(one.ask.key, []).append(one)
    refused: set[str] = set()
    for key, answers in by_key.items():
        assert len(answers) == TIMES
        (first,) = [one for one in answers if not one.replayed and not one.differs]
        for one in answers:
            if one.ask.altered == first.ask.altered:
                assert (one.outcome, one.differs) == (first.outcome, ""), key
            else:
                assert one.differs == (one.ask.altered or first.ask.altered), (one, first)
                refused.add(one.differs)
    assert refused == {field for field, _ in altered}, "a field that nothing was refused for"


def said_of(ask: Ask, answer: Any) -> Said:
    """Read an item's answer."""
    outcome = answer.WhichOneof("outcome")
    if outcome == "fault":
        assert answer.fault.reason == "REQUEST_ID_REUSED", answer
        return Said(ask, "", differs=answer.fault.metadata["field"])
    value = getattr(answer, outcome)
    replayed = value.replayed
    value.replayed = False
    if hasattr(value, "balance_micros"):
        value.balance_micros = 0  # as of the answer, not of the first one
    return Said(ask, f"{outcome} {value}", replayed)


def sending(channels: list[grpc.aio.Channel], method: str, request: Callable[[list[Any]], Any], items: str) -> Send:
    stubs: list[Any] = [rpc.ChargeServiceStub(channel) for channel in channels]

    async def send(connection: int, asks: Sequence[Ask]) -> list[Said]:
        asked = request([ask.message for ask in asks])
        response = await call(getattr(stubs[connection], method), asked, timeout_ms=PATIENT_MS)
        return [said_of(ask, answer) for ask, answer in zip(asks, getattr(response, items), strict=True)]

    return send


async def spender_of(ledgers: Ledgers, micros: int = RICH) -> tuple[Tenant, str]:
    """Return a tenant, and another of its agents."""
    first = await tenant(ledgers.own, micros)
    return first, (await first.under(ids.new(ids.Kind.AGENT), *first.path[1:3])).path[-1]


async def booked(ledgers: Ledgers, organization: str, table: str) -> int:
    """Check the books and count the rows of a table."""
    async with owner(ledgers.own.house) as connection:
        await check_books(connection, organization)
        rows = await connection.fetch(f"SELECT 1 FROM {table} WHERE organization_id = $1", organization)  # noqa: S608
    return len(rows)


ROUTES = [pb.Route(provider="mock", model="mock-model"), pb.Route(provider="mock", model="mock-flat")]


async def test_of_a_storm_of_holds_each_key_is_one_hold(ledgers: Ledgers) -> None:
    first, other = await spender_of(ledgers)
    same = {"routes": ROUTES, "output_tokens_wanted": LUNCH, "input_tokens_max": 100, "api_key_id": "key"}
    altered: list[Altered] = [
        ("agent_id", {"agent_id": other}),
        ("routes", {"routes": ROUTES[::-1]}),
        ("input_tokens_max", {"input_tokens_max": 101}),
        ("output_tokens_wanted", {"output_tokens_wanted": LUNCH - 1}),
        ("output_tokens_min", {"output_tokens_min": 7}),
        ("choices", {"choices": 2}),
        ("end_user", {"end_user": "ada"}),
        ("api_key_id", {"api_key_id": "another"}),
    ]

    def build(number: int, **changes: Any) -> pb.PlaceHold:
        return hold(f"h{number}", first.path[-1], **(same | ({"path_version": 4} if number else {}) | changes))

    asks = asks_of([f"h{number}" for number in range(320)], build, altered)
    holder = ids.new(ids.Kind.HOLDER)
    async with ledgers.channels(CONNECTIONS) as channels:
        send = sending(channels, "PlaceHolds", lambda all_: pb.PlaceHoldsRequest(holder_id=holder, holds=all_), "holds")
        check(await storm(asks, send), altered)
    assert await booked(ledgers, first.organization, "holds") == 320


async def test_of_a_storm_of_refused_holds_each_refusal_stays(ledgers: Ledgers) -> None:
    first, other = await spender_of(ledgers, 1_000)
    altered: list[Altered] = [
        ("agent_id", {"agent_id": other}),
        ("choices", {"choices": 2}),
        ("cost_max_micros", {"cost_max_micros": 1}),
    ]

    def build(number: int, **changes: Any) -> pb.PlaceHold:
        return hold(f"h{number}", first.path[-1], **changes)

    asks = asks_of([f"h{number}" for number in range(80)], build, altered)
    holder = ids.new(ids.Kind.HOLDER)
    async with ledgers.channels(CONNECTIONS) as channels:
        send = sending(channels, "PlaceHolds", lambda all_: pb.PlaceHoldsRequest(holder_id=holder, holds=all_), "holds")
        said = await storm(asks, send)
    check(said, altered)
    assert {one.outcome.partition(" ")[0] for one in said if not one.differs} == {"refused"}
    assert await booked(ledgers, first.organization, "holds") == 80


async def test_of_a_storm_of_settlements_each_key_is_charged_once(ledgers: Ledgers) -> None:
    first, _ = await spender_of(ledgers)
    agent, holder = first.path[-1], ids.new(ids.Kind.HOLDER)
    usage = {"input_tokens": 5, "cached_input_tokens": 6, "cache_write_tokens": 7, "output_tokens": 8}
    figures = {"http_status": 200, "latency_ms": 9, "overhead_ms": 3, "first_token_ms": 4}
    altered: list[Altered] = [
        ("route", {"route": 1}),
        *((f"usage.{name}", {"usage": pb.TokenUsage(**(usage | {name: 1}))}) for name in (*usage, "reasoning_tokens")),
        ("estimated", {"estimated": True}),
        ("outcome", {"outcome": "client_gone"}),
        *((name, {name: value + 1}) for name, value in figures.items()),
        ("streamed", {"streamed": True}),
        ("usage_source", {"usage_source": "missing"}),
        ("attempts", {"attempts": 2}),
        ("dialect", {"dialect": "messages"}),
    ]
    holds = [
        hold(f"h{number}", agent, routes=ROUTES, input_tokens_max=100, output_tokens_wanted=100)
        for number in range(320)
    ]

    def build(number: int, **changes: Any) -> pb.SettleHold:
        return settle(f"h{number}", agent, **({"usage": pb.TokenUsage(**usage)} | figures | changes))

    asks = asks_of([place.request_id for place in holds], build, altered)
    async with ledgers.channels(CONNECTIONS) as channels:
        stub: Any = rpc.ChargeServiceStub(channels[0])
        await call(stub.PlaceHolds, pb.PlaceHoldsRequest(holder_id=holder, holds=holds))
        send = sending(channels, "SettleHolds", lambda all_: pb.SettleHoldsRequest(settles=all_), "settles")
        check(await storm(asks, send), altered)
    assert await booked(ledgers, first.organization, "usage") == 320


async def test_of_a_storm_of_charges_each_key_is_charged_or_refused_once(ledgers: Ledgers) -> None:
    first, other = await spender_of(ledgers, 200 * 100_000)
    altered: list[Altered] = [
        ("agent_id", {"agent_id": other}),
        ("amount_micros", {"amount_micros": 100_001}),
        ("provider", {"provider": "other"}),
        ("model", {"model": "other"}),
        ("api_key_id", {"api_key_id": "another"}),
        ("end_user", {"end_user": "ada"}),
    ]

    def build(number: int, **changes: Any) -> pb.PostCharge:
        return charge(f"h{number}", first.path[-1], **changes)

    asks = asks_of([f"h{number}" for number in range(320)], build, altered)
    async with ledgers.channels(CONNECTIONS) as channels:
        send = sending(channels, "PostCharges", lambda all_: pb.PostChargesRequest(charges=all_), "charges")
        said = await storm(asks, send)
    check(said, altered)
    assert {one.outcome.partition(" ")[0] for one in said if not one.differs} == {"posted", "refused"}
    assert await booked(ledgers, first.organization, "holds") == 320
    assert 195 <= await booked(ledgers, first.organization, "usage") <= 200


async def test_of_a_storm_of_purchases_each_key_is_bought_once(ledgers: Ledgers, issuer: TestIssuer) -> None:
    first = await tenant(ledgers.own, 0)
    owns = issuer.person(**{first.organization: "owner"})
    altered: list[Altered] = [("amount_micros", {"amount_micros": 8}), ("reason", {"reason": "more"})]

    def build(number: int, **changes: Any) -> wallets_pb2.PurchaseCreditsRequest:
        values: dict[str, Any] = {"organization_id": first.organization, "amount_micros": 7, "request_id": f"p{number}"}
        return wallets_pb2.PurchaseCreditsRequest(**(values | changes))

    asks = asks_of([f"p{number}" for number in range(60)], build, altered)
    async with ledgers.channels(CONNECTIONS, as_service="edge") as channels:
        stubs: list[Any] = [wallets_pb2_grpc.WalletServiceStub(channel) for channel in channels]

        async def send(connection: int, part: Sequence[Ask]) -> list[Said]:
            return await asyncio.gather(*(bought(stubs[connection], owns, ask) for ask in part))

        said = await storm(asks, send)
    check(said, altered)
    firsts = {one.ask.key: one.ask.message.amount_micros for one in said if not one.replayed and not one.differs}
    assert await first.wallet() == (sum(firsts.values()), 0)
    assert await booked(ledgers, first.organization, "transfers") == 60


async def bought(stub: Any, owns: Caller, ask: Ask) -> Said:
    try:
        with caller.acting(owns):
            posting = await call(stub.PurchaseCredits, ask.message, timeout_ms=PATIENT_MS)
    except AlreadyExists as error:
        return Said(ask, "", differs=error.details["field"])
    return Said(ask, f"posted {posting.transfer.seq}", posting.replayed)
