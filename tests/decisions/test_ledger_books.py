from __future__ import annotations

import copy
import hashlib
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_svc.books import Account, Books, LimitSet, OpenHold, apply, plain
from ledger_svc.holds import Placing, Settling
from ledger_svc.pricing import Bound, Price, Rates, Usage

NOON = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
WALLET, REVENUE, DAY, TOTAL = 1, 2, 3, 4
LIMITS = LimitSet(9, "org,wsp,agp,agt", (WALLET, DAY, TOTAL), MIDNIGHT)
PRICE = Price("p1", "mock", 'a "model"', Rates(0, 0, 0, 1_000_000, 0), 0, 1_000, 1_000, "", "")
HASH = hashlib.sha256(b"before").digest()


def budget(limit: int, *, spent: int = 0, held: int = 0, disabled: bool = False, auto: bool = False) -> Account:
    return Account(-spent, held, -limit, disabled, auto)


def books(**accounts: Account) -> Books:
    kept = {
        "wallet": Account(1_000, 0, 0, disabled=False, auto_disable=False),
        "day": budget(500),
        "total": budget(900),
    }
    kept |= accounts
    found = Books("org", UUID(int=7), NOON, None, WALLET, REVENUE, 10, 20, 30, HASH)
    found.limits = {("agt", 4): LIMITS}
    found.accounts = {
        WALLET: kept["wallet"],
        REVENUE: Account(0, 0, 0, disabled=False, auto_disable=False),
        DAY: kept["day"],
        TOTAL: kept["total"],
    }
    return found


def placing(key: str, tokens: int, least: int = 0, *, version: int = 4, cost_max: int = 0) -> Placing:
    bound = Bound(0, 1_000_000, 0)
    return Placing(key, "hld", "agt", version, "key", (PRICE,), 0, tokens, least, 1, bound, "", cost_max)


def settling(key: str, cost: int) -> Settling:
    return Settling(key, PRICE, Usage(output_tokens=cost), cost, False, "ok", 200, 1, 1, 0, False)


def opened(ceiling: int) -> OpenHold:
    return OpenHold("agt", "key", "", ceiling, LIMITS, NOON)


def test_holds_take_from_every_account_above_and_settlements_give_back_what_they_did_not_spend() -> None:
    before = books(wallet=Account(1_000, 30, 0, disabled=False, auto_disable=False), day=budget(500, held=30))
    before.accounts[TOTAL] = budget(900, held=30)
    before.holds = {"a": opened(30)}
    at = NOON + timedelta(seconds=1)
    batch = plain(before, [settling("a", 12)], [placing("b", 100)], at)
    assert batch
    assert batch.accounts == {
        WALLET: Account(988, 100, 0, disabled=False, auto_disable=False),
        DAY: budget(500, spent=12, held=100),
        TOTAL: budget(900, spent=12, held=100),
        REVENUE: Account(12, 0, 0, disabled=False, auto_disable=False),
    }
    apply(before, batch, UUID(int=8))
    assert (before.turn.int, before.told_at, before.transfer_seq, before.usage_seq, before.audit_seq) == (
        8,
        at,
        11,
        21,
        31,
    )
    assert list(before.holds) == ["b"]
    assert before.accounts[DAY] == budget(500, spent=12, held=100)


def test_what_a_settlement_frees_is_there_for_the_holds_of_its_batch() -> None:
    before = books(day=budget(500, held=500), total=budget(900, held=500))
    before.accounts[WALLET] = Account(1_000, 500, 0, disabled=False, auto_disable=False)
    before.holds = {"a": opened(500)}
    assert plain(before, [], [placing("b", 1)], NOON) is None
    assert plain(before, [settling("a", 0)], [placing("b", 500)], NOON)


@pytest.mark.parametrize(
    ("wanted", "accounts"),
    [
        (placing("b", 501), {}),
        (placing("b", 1_001), {"day": budget(5_000), "total": budget(5_000)}),
        (placing("b", 1), {"day": budget(500, disabled=True)}),
        (placing("b", 1), {"total": budget(900, spent=500, held=400)}),
        (placing("b", 1, version=3), {}),
        (placing("b", 30, 20, cost_max=10), {}),
    ],
    ids=["above a budget", "above the wallet", "disabled", "held by others", "stale path", "above its own limit"],
)
def test_a_hold_that_is_not_granted_whole_is_not_plain(wanted: Placing, accounts: dict[str, Account]) -> None:
    assert plain(books(**accounts), [], [wanted], NOON) is None


def test_an_own_limit_that_leaves_enough_is_granted_within_it() -> None:
    batch = plain(books(), [], [placing("b", 30, 5, cost_max=10)], NOON)
    assert batch
    assert batch.placed[0][1].ceiling_micros == 10


def test_windows_that_ended_and_credits_that_are_due_are_not_decided_here() -> None:
    assert plain(books(), [], [placing("b", 1)], MIDNIGHT - timedelta(microseconds=1))
    assert plain(books(), [], [placing("b", 1)], MIDNIGHT) is None
    due = books()
    due.due_at = NOON
    assert plain(due, [], [placing("b", 1)], NOON) is None
    due.holds = {"a": opened(1)}
    assert plain(due, [settling("a", 1)], [], NOON)


@pytest.mark.parametrize(
    ("cost", "day"),
    [
        (31, budget(500, held=30)),
        (25, budget(500, spent=225, held=30)),
        (30, budget(500, spent=370, held=30)),
        (30, budget(500, spent=470, held=30)),
        (0, budget(0, held=30, auto=True)),
    ],
    ids=["above its ceiling", "half of the limit", "80 percent", "all of it", "used up and to be stopped"],
)
def test_a_settlement_with_something_to_tell_is_not_plain(cost: int, day: Account) -> None:
    before = books(day=day)
    before.holds = {"a": opened(30)}
    assert plain(before, [settling("a", cost)], [], NOON) is None


def test_just_below_a_threshold_there_is_nothing_to_tell() -> None:
    before = books(day=budget(500, spent=225, held=30, auto=True))
    before.holds = {"a": opened(30)}
    assert plain(before, [settling("a", 24)], [], NOON)


def test_what_is_not_remembered_is_not_plain() -> None:
    assert plain(books(), [settling("a", 1)], [], NOON) is None
    gone = books()
    del gone.accounts[DAY]
    assert plain(gone, [], [placing("b", 1)], NOON) is None


def test_audit_lines_are_canonical_and_chained() -> None:
    before = books()
    before.holds = {"a": opened(5), "b": opened(5)}
    batch = plain(before, [settling("a", 3), settling("b", 0)], [], NOON)
    assert batch
    assert batch.posted == 1
    head = HASH
    for number, (line, digest) in enumerate(zip(batch.lines, batch.hashes, strict=True), 31):
        read = json.loads(line)
        assert line == json.dumps(read, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        assert (read["seq"], read["time"]) == (number, "2026-03-01T12:00:00.000005Z")
        assert read["detail"]["model"] == 'a "model"'
        head = hashlib.sha256(head + line.encode()).digest()
        assert digest == head


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12), st.integers(0, 11))
def test_a_batch_is_worth_its_items_one_by_one(items: list[tuple[int, int]], cut: int) -> None:
    """Whatever is plain as a whole is plain in parts, and leaves the same accounts."""
    whole, parts = books(), books()
    for number, (ceiling, _) in enumerate(items):
        whole.holds[f"a{number}"] = parts.holds[f"a{number}"] = opened(ceiling)
    settles = [settling(f"a{number}", min(cost, ceiling)) for number, (ceiling, cost) in enumerate(items)]
    places = [placing(f"b{number}", cost) for number, (_, cost) in enumerate(items)]
    batch = plain(whole, settles, places, NOON)
    if batch is None:
        return
    apply(whole, batch, UUID(int=1))
    for settled, placed in ((settles[:cut], []), (settles[cut:], []), ([], places[:cut]), ([], places[cut:])):
        part = plain(parts, settled, placed, NOON)
        assert part
        apply(parts, part, UUID(int=1))
    assert whole.accounts == parts.accounts
    assert (whole.transfer_seq, whole.usage_seq, whole.audit_hash) == (
        parts.transfer_seq,
        parts.usage_seq,
        parts.audit_hash,
    )


@given(st.integers(0, 600), st.integers(0, 600))
def test_deciding_changes_nothing_that_is_remembered(taken: int, spent: int) -> None:
    before = books()
    before.holds = {"a": opened(spent)}
    was = copy.deepcopy(before)
    plain(before, [settling("a", spent)], [placing("b", taken)], NOON)
    assert before == was
