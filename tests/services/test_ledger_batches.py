from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger_svc import remembering
from ledger_svc.holds import Posting, Refused, Settled
from ledger_svc.remembering import Remembering
from ledger_svc.store import charges, wallets
from tests.conftest import RunningLedger
from tests.services import ledger_running
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books
from tests.services.test_ledger_model import FEW, MANY, MICROS, SOME, agents_of

ITEMS_MAX, ROUNDS_MAX = 12, 4
CUTS = st.sets(st.integers(1, ITEMS_MAX))
AGENT = st.integers(0, 2)


@pytest.fixture(scope="module", autouse=True)
def always_tried() -> Generator[None]:
    """Try every batch from what is remembered, however often it was no use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembering, "SKIPPED_MAX", 1)
        yield


@dataclass(frozen=True)
class Round:
    """What comes together: settlements of earlier holds, new ones, charges; before it, the holder may lapse."""

    lapses: bool
    settles: list[tuple[int, int]]  # which hold, and its tokens
    places: list[tuple[int, int, int]]  # whose, the least, and how much more
    posts: list[tuple[int, int]]


ROUNDS = st.lists(
    st.builds(
        Round,
        st.sampled_from([False, False, True]),
        st.lists(
            st.tuples(st.integers(0, 2 * ITEMS_MAX), st.integers(0, 16)),
            max_size=ITEMS_MAX,
            unique_by=lambda settle: settle[0],  # one batch never has a key twice: the commits see to it
        ),
        st.lists(st.tuples(AGENT, SOME, SOME), max_size=ITEMS_MAX),
        st.lists(st.tuples(AGENT, MICROS), max_size=ITEMS_MAX),
    ),
    min_size=1,
    max_size=ROUNDS_MAX,
)


class Batches:
    """Writes each kind of item apart, in parts that end at some places."""

    def __init__(self, tenant: Tenant, cuts: set[int]) -> None:
        self.database, self.organization = tenant.ledger.database, tenant.organization
        self._cuts = cuts

    async def write(self, settles: list[Any], places: list[Any], posts: list[Any]) -> list[object]:
        return [
            *await self._in_parts(settles, charges.settle),
            *await self._in_parts(places, charges.place),
            *await self._in_parts(posts, charges.post),
        ]

    async def _in_parts(
        self, items: list[Any], write: Callable[[Any, str, Sequence[Any]], Awaitable[Sequence[object]]]
    ) -> list[object]:
        ends = [0, *sorted(cut for cut in self._cuts if cut < len(items)), len(items)]
        said: list[object] = []
        for start, end in pairwise(ends):
            if start < end:
                said += await write(self.database, self.organization, items[start:end])
        return said


class Commits(Batches):
    """Writes settlements and holds in one commit."""

    async def write(self, settles: list[Any], places: list[Any], posts: list[Any]) -> list[object]:
        if not (settles and places):
            return await super().write(settles, places, posts)
        settled, placed = await charges.settle_and_place(self.database, self.organization, settles, places)
        return [*settled, *placed, *await super().write([], [], posts)]


class Remembered(Batches):
    """Writes settlements and holds from what is remembered, a part after the other, or together where there is none."""

    def __init__(self, tenant: Tenant, cuts: set[int]) -> None:
        super().__init__(tenant, cuts)
        self._books = books_of(tenant)

    async def write(self, settles: list[Any], places: list[Any], posts: list[Any]) -> list[object]:
        organization, books = self.organization, self._books
        if settles and places and not self._cuts:
            settled, placed = await books.settle_and_place(organization, settles, places)
            return [*settled, *placed, *await self._in_parts(posts, apart(books.post))]
        return [
            *await self._in_parts(settles, apart(books.settle)),
            *await self._in_parts(places, apart(books.place)),
            *await self._in_parts(posts, apart(books.post)),
        ]


def apart(
    write: Callable[[str, Sequence[Any]], Awaitable[Sequence[object]]],
) -> Callable[[Any, str, Sequence[Any]], Awaitable[Sequence[object]]]:
    """Leave out the database, which a memory has of its own."""
    return lambda _, organization, items: write(organization, items)


def books_of(tenant: Tenant) -> Remembering:
    """Return what is remembered of a tenant's books: one memory for all that is written in its organization."""
    return MEMORIES.setdefault(tenant.organization, Remembering(tenant.ledger.database))


MEMORIES: dict[str, Remembering] = {}
WAYS: list[Callable[[Tenant, set[int]], Batches]] = [
    lambda tenant, _: Batches(tenant, set(range(ITEMS_MAX + 1))),
    Batches,
    lambda tenant, _: Commits(tenant, set()),
    Remembered,
    lambda tenant, _: Remembered(tenant, set()),
]


async def told(
    ledger: RunningLedger, rounds: list[Round], cuts: set[int], way: Callable[[Tenant, set[int]], Batches]
) -> list[object]:
    """Return all answers and what is left in the end, for one way of writing, in an organization of its own."""
    agents = await agents_of(ledger)
    MEMORIES.clear()
    first, database = agents[0], ledger.database
    await wallets.post(database, first.organization, "bought", "purchase", 60 * TOKEN_MICROS, "", "test", "")
    caps: list[str] = []
    for node in first.path[1:]:
        caps.append(await first.budget(20 * TOKEN_MICROS, auto_disable=True, target=node))
        await asyncio.sleep(0.002)  # ids are in order from one millisecond to the next
    said: list[object] = []
    for number, each in enumerate(rounds):
        if each.lapses:
            await agents[0].lapse()
            holder = (await agents[0].again()).holder
            agents = [replace(agent, holder=holder) for agent in agents]
        settles = [
            first.settling(f"h{which // ITEMS_MAX}.{which % ITEMS_MAX}", tokens) for which, tokens in each.settles
        ]
        places = [
            (agents[agent].placing(f"h{number}.{place}", least + more, least), True)
            for place, (agent, least, more) in enumerate(each.places)
        ]
        posts = [
            Posting(f"p{number}.{place}", agents[agent].path[-1], 4, "key", "", "mcp", "search", amount)
            for place, (agent, amount) in enumerate(each.posts)
        ]
        said += await way(first, cuts).write(settles, places, posts)
        said += [await first.wallet(), *[await first.spent(cap) for cap in caps]]
    async with ledger_running.owner(ledger.house) as owner:
        await check_books(owner, first.organization)
    return [_nameless(one, [*caps, *first.path]) for one in said]


def _nameless(outcome: object, names: list[str]) -> object:
    """Leave out what differs between two runs: ids, and balances, which are those after a batch."""
    if isinstance(outcome, Refused):
        account = outcome.account_id if outcome.account_id == "wallet" else str(names.index(outcome.account_id))
        return replace(outcome, account_id=account, target_id="")
    return replace(outcome, balance_micros=0) if isinstance(outcome, Settled) else outcome


async def answer_alike(ledger: RunningLedger, rounds: list[Round], cuts: set[int]) -> None:
    one_by_one, *others = [await told(ledger, rounds, cuts, way) for way in WAYS]
    for other in others:
        assert other == one_by_one


@FEW
@example(rounds=[Round(lapses=False, settles=[], places=[], posts=[(0, 2_000), (0, 2_000), (0, 1)])], cuts={1})
@example(rounds=[Round(lapses=False, settles=[], places=[], posts=[(0, 2_000), (0, 2_001)])], cuts={1})
@given(rounds=ROUNDS, cuts=CUTS)
async def test_any_split_into_batches_answers_like_one_by_one(
    ledger: RunningLedger, rounds: list[Round], cuts: set[int]
) -> None:
    await answer_alike(ledger, rounds, cuts)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
@MANY
@given(rounds=ROUNDS, cuts=CUTS)
async def test_any_split_into_batches_answers_like_one_by_one_for_long(
    ledger: RunningLedger, rounds: list[Round], cuts: set[int]
) -> None:
    await answer_alike(ledger, rounds, cuts)
