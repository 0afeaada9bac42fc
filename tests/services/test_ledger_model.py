from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import asyncpg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ledger_svc.holds import Differs, Ended, Granted, Placed, Refused, Settled, SettleOutcome, Voided, VoidOutcome
from ledger_svc.store import budgets, charges, wallets
from mesh import ids
from tests.conftest import RunningLedger
from tests.services import ledger_running
from tests.services.ledger_model import Model
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, forget_checkpoints, move_time

FEW = settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink),
               suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
SOME = st.integers(0, 12)  # tokens
MANY = st.integers(0, 40)
PICK = st.integers(0, 7)  # which of what there is
PERIODS = st.sampled_from(["daily", "monthly", "total"])

OPERATIONS = st.one_of(
    st.tuples(st.just("place"), PICK, SOME, SOME),
    st.tuples(st.just("place"), PICK, SOME, st.just(12)),
    st.tuples(st.just("settle"), PICK, st.integers(0, 16)),
    st.tuples(st.just("settle"), PICK, st.integers(0, 16)),
    st.tuples(st.just("void"), PICK),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("resolve"), PICK, st.none() | SOME),
    st.tuples(st.just("purchase"), MANY),
    st.tuples(st.just("refund"), SOME),
    st.tuples(st.just("create"), PICK, PERIODS, MANY, st.booleans()),
    st.tuples(st.just("limit"), PICK, MANY),
    st.tuples(st.just("enable"), PICK),
    st.tuples(st.just("tomorrow")),
    st.tuples(st.just("forget")),
)


@dataclass
class Pair:
    """The ledger and its model, side by side."""

    agents: list[Tenant]
    owner: asyncpg.Connection
    model: Model = field(default_factory=lambda: Model(TOKEN_MICROS))
    keys: list[str] = field(default_factory=list)
    number: Callable[[], int] = field(default_factory=lambda: count().__next__)

    @property
    def first(self) -> Tenant:
        return self.agents[0]

    async def place(self, agent: int, least: int, more: int) -> None:
        tenant, key = self.agents[agent % len(self.agents)], f"h{self.number()}"
        expected = self.model.place(key, tenant.path, least + more, least)
        assert said_of_place(await tenant.place(key, least + more, least)) == expected
        self.keys += [key] if expected[0] == "granted" else []

    async def settle(self, pick: int, tokens: int) -> None:
        if self.keys:
            key = self.keys[-1 - pick % len(self.keys)]
            assert said_of_settle(await self.first.settle(key, tokens)) == self.model.settle(key, tokens)

    async def void(self, pick: int) -> None:
        if self.keys:
            key = self.keys[-1 - pick % len(self.keys)]
            assert said_of_void(await self.first.void(key)) == self.model.void(key)

    async def lapse(self) -> None:
        self.model.lapse()
        await self.first.lapse()
        holder = (await self.first.again()).holder
        self.agents = [replace(agent, holder=holder) for agent in self.agents]

    async def resolve(self, pick: int, tokens: int | None) -> None:
        if self.keys:
            key, actual = self.keys[-1 - pick % len(self.keys)], None if tokens is None else tokens * TOKEN_MICROS
            expected = self.model.resolve(key, actual)
            resolved = await wallets.resolve(
                self.first.ledger.database, self.first.organization, f"k{self.number()}", key, actual, "test", "looked"
            )
            assert {1: "done", 2: "none", 3: "decided", 4: "above"}[resolved.status] == expected

    async def purchase(self, tokens: int) -> None:
        if tokens:
            self.model.wallet.settled += tokens * TOKEN_MICROS
            assert await self._post("purchase", tokens * TOKEN_MICROS) == wallets.POSTED

    async def refund(self, tokens: int) -> None:
        if tokens:
            amount, wallet = tokens * TOKEN_MICROS, self.model.wallet
            short = wallet.settled - wallet.held < amount
            wallet.settled -= 0 if short else amount
            assert await self._post("adjustment", -amount) == (wallets.SHORT if short else wallets.POSTED)

    async def create(self, pick: int, period: str, limit: int, auto: bool) -> None:  # noqa: FBT001
        if len(self.model.budgets) < 12:
            nodes = [node for agent in self.agents for node in agent.path]
            target = nodes[pick % len(nodes)]
            budget_id = await self.first.budget(limit * TOKEN_MICROS, target=target, period=period, auto_disable=auto)
            self.model.create(budget_id, target, period, limit * TOKEN_MICROS, auto=auto)

    async def limit(self, pick: int, limit: int) -> None:
        if self.model.budgets:
            budget = list(self.model.budgets.values())[pick % len(self.model.budgets)]
            budget.limit = limit * TOKEN_MICROS
            await self._change(budget.id, limit_micros=budget.limit)

    async def enable(self, pick: int) -> None:
        if self.model.budgets:
            budget = list(self.model.budgets.values())[pick % len(self.model.budgets)]
            budget.disabled = False
            await self._change(budget.id, disabled=False)

    async def tomorrow(self) -> None:
        self.model.day += 1
        await self.begin()

    async def forget(self) -> None:
        await forget_checkpoints(self.owner, self.first.organization)

    async def begin(self) -> None:
        await move_time(self.owner, self.first.organization, f"2100-01-{self.model.day + 1:02}T12:00:00Z")

    async def compare(self) -> None:
        assert await self.first.wallet() == (self.model.wallet.settled, self.model.wallet.held)
        rows = await budgets.of_organization(self.first.ledger.database, self.first.organization, None, 100)
        found = {row["id"]: (row["settled_micros"], row["held_micros"], row["disabled"]) for row in rows}
        windows = {name: budget.window(self.model.day) for name, budget in self.model.budgets.items()}
        expected = {
            name: (-window.settled, window.held, self.model.budgets[name].disabled) for name, window in windows.items()
        }
        assert found == expected

    async def _post(self, kind: str, amount: int) -> int:
        database, key = self.first.ledger.database, f"k{self.number()}"
        posted = await wallets.post(database, self.first.organization, key, kind, amount, "", "test", "")
        return posted.status

    async def _change(self, budget_id: str, *, limit_micros: int | None = None, disabled: bool | None = None) -> None:
        database, key = self.first.ledger.database, f"k{self.number()}"
        await budgets.change(
            database, self.first.organization, budget_id, key, "test", limit_micros=limit_micros, disabled=disabled
        )


def said_of_place(placed: Placed) -> tuple[str, int]:
    match placed:
        case Granted(output_tokens=tokens, ceiling_micros=ceiling):
            assert ceiling == tokens * TOKEN_MICROS
            return "granted", tokens
        case Refused(refusal=refusal):
            return refusal.name, 0
        case _:
            raise AssertionError(placed)


def said_of_settle(outcome: SettleOutcome) -> tuple[str, int, int]:
    match outcome:
        case Settled(charged_micros=charged, replayed=True):
            return "settled", charged, 0
        case Settled(charged_micros=charged, breach_micros=breach):
            return "settled", charged, breach
        case Differs(field="usage.output_tokens"):
            return "differs", 0, 0
        case Ended(how=how):
            return how, 0, 0
        case _:
            raise AssertionError(outcome)


def said_of_void(outcome: VoidOutcome) -> str:
    match outcome:
        case Voided():
            return "voided"
        case Ended(how=how):
            return how


async def agents_of(ledger: RunningLedger) -> list[Tenant]:
    first = await ledger_running.tenant(ledger, 0)
    _, workspace, group, _ = first.path
    second = await first.under(ids.new(ids.Kind.AGENT), workspace, group)
    third = await first.under(ids.new(ids.Kind.AGENT), workspace, ids.new(ids.Kind.AGENT_GROUP))
    return [first, second, third]


@FEW
@given(operations=st.lists(OPERATIONS, min_size=20, max_size=50))
async def test_the_ledger_and_a_model_of_it_agree_after_every_step(
    ledger: RunningLedger, operations: list[tuple[object, ...]]
) -> None:
    async with ledger_running.owner(ledger.house) as owner:
        pair = Pair(await agents_of(ledger), owner)
        await pair.begin()
        await pair.purchase(60)
        for name, *values in operations:
            await getattr(pair, str(name))(*values)
            await pair.compare()
        await check_books(owner, pair.first.organization)
        await pair.forget()
        await pair.compare()
        await pair.place(0, 1, 3)
        await pair.settle(0, 2)
        await pair.compare()
        await check_books(owner, pair.first.organization)


BATCH = st.lists(st.tuples(st.integers(0, 2), SOME, SOME), min_size=1, max_size=20)
CUTS = st.sets(st.integers(1, 20))


def split(items: list[object], cuts: set[int]) -> list[list[object]]:
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(items)), len(items)]
    return [items[a:b] for a, b in pairwise(places)]


@FEW
@given(items=BATCH, used=st.lists(st.integers(0, 16), min_size=20, max_size=20), cuts=CUTS, late=st.booleans())
async def test_any_split_into_batches_answers_like_one_by_one(
    ledger: RunningLedger,
    items: list[tuple[int, int, int]],
    used: list[int],
    cuts: set[int],
    late: bool,  # noqa: FBT001
) -> None:
    answers: list[object] = []
    for places in (set(range(21)), cuts):
        agents = await agents_of(ledger)
        first, database = agents[0], ledger.database
        await wallets.post(database, first.organization, "bought", "purchase", 60 * TOKEN_MICROS, "", "test", "")
        caps: list[str] = []
        for node in first.path[1:]:
            caps.append(await first.budget(20 * TOKEN_MICROS, auto_disable=True, target=node))
            await asyncio.sleep(0.002)  # ids are in order from one millisecond to the next
        placings = [
            (agents[agent].placing(f"h{number}", least + more, least), True)
            for number, (agent, least, more) in enumerate(items)
        ]
        said: list[object] = []
        for part in split(list(placings), places):
            said += await charges.place(database, first.organization, part)  # pyright: ignore[reportArgumentType]
        if late:
            await first.lapse()
        settlings = [first.settling(f"h{number}", used[number]) for number in range(len(items))]
        for part in split(list(settlings), places):
            outcomes = await charges.settle(database, first.organization, part)  # pyright: ignore[reportArgumentType]
            said += [replace(one, balance_micros=0) if isinstance(one, Settled) else one for one in outcomes]
        said += [await first.wallet(), *[await first.spent(cap) for cap in caps]]
        async with ledger_running.owner(ledger.house) as owner:
            await check_books(owner, first.organization)
        answers.append([_nameless(one, [*caps, *first.path]) for one in said])
    assert answers[0] == answers[1]


def _nameless(outcome: object, names: list[str]) -> object:
    """Replace the ids of one run, so that two runs can be compared."""
    if isinstance(outcome, Refused):
        account = outcome.account_id if outcome.account_id == "wallet" else str(names.index(outcome.account_id))
        return replace(outcome, account_id=account, target_id="")
    return outcome
