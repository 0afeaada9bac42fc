from __future__ import annotations

import re
import time
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway_svc.globs import Glob, compiled
from gateway_svc.policies import ANYTHING, Policy, Rate, Terms, merge, policy

names = st.text("ab-.", min_size=1, max_size=6)
patterns = st.text("ab*.", min_size=1, max_size=5)
lists = st.none() | st.lists(patterns, max_size=4).map(tuple)
limits = st.none() | st.integers(1, 50)
targets = st.sampled_from(["org_1", "ws_1", "grp_1", "agt_1"])
terms = st.builds(Terms, lists, lists, lists, lists, limits, limits, limits, limits, st.booleans())
rules = st.builds(policy, terms, targets)
NAMED = ("allows", "allows_tool", "allows_endpoint", "allows_provider")
LEAST = ("max_tokens_per_request", "max_cost_micros_per_request", "requests_per_minute", "tokens_per_minute")


def limit_of(merged: Policy, target_id: str) -> Rate:
    return next((rate for rate in merged.rates if rate.target_id == target_id), Rate(target_id, None, None))


@given(rules, rules, rules)
def test_a_merge_is_associative(a: Policy, b: Policy, c: Policy) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])])


@given(rules, rules)
def test_a_merge_is_commutative(a: Policy, b: Policy) -> None:
    assert merge([a, b]) == merge([b, a])


@given(rules)
def test_a_merge_with_itself_or_with_nothing_changes_nothing(a: Policy) -> None:
    assert merge([a, a]) == merge([a]) == merge([a, ANYTHING]) == merge([ANYTHING, a]) == a


@given(rules, rules, names)
def test_a_merge_allows_exactly_the_names_that_all_allow(a: Policy, b: Policy, name: str) -> None:
    merged = merge([a, b])
    for allows in NAMED:
        assert getattr(merged, allows)(name) is (getattr(a, allows)(name) and getattr(b, allows)(name))


@given(rules, rules)
def test_a_merged_limit_is_the_least_of_those_that_there_are(a: Policy, b: Policy) -> None:
    merged = merge([a, b])
    for field in LEAST:
        given_limits = [limit for one in (a, b) if (limit := getattr(one, field)) is not None]
        assert getattr(merged, field) == min(given_limits, default=None)
    assert merged.cut_abandoned_streams is (a.cut_abandoned_streams or b.cut_abandoned_streams)


@given(rules, rules)
def test_a_merge_widens_the_rate_of_no_target(a: Policy, b: Policy) -> None:
    merged = merge([a, b])
    for one in (a, b):
        for rate in one.rates:
            kept = limit_of(merged, rate.target_id)
            for before, after in (
                (rate.requests_per_minute, kept.requests_per_minute),
                (rate.tokens_per_minute, kept.tokens_per_minute),
            ):
                assert before is None or (after is not None and after <= before)


@pytest.mark.parametrize("allows", NAMED)
def test_an_empty_list_allows_nothing_and_no_list_everything(allows: str) -> None:
    assert not getattr(policy(Terms((), (), (), ()), "org_1"), allows)("mock-model")
    assert getattr(policy(Terms(), "org_1"), allows)("mock-model")


def test_a_rule_that_allows_everything_is_no_rule() -> None:
    assert policy(Terms(("*", "gpt-*"), ("*",), ("*",), ("*",)), "org_1") == ANYTHING


@given(patterns, names)
@example("a*a", "a")
@example("a*b*a", "aba")
@example("**", "a")
@example("a.b", "a-b")
def test_a_star_is_any_run_of_characters_and_nothing_else_is_special(pattern: str, name: str) -> None:
    model = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert compiled(frozenset({pattern})).match(name) is (re.fullmatch(model, name, re.DOTALL) is not None)


def test_every_short_pattern_takes_in_what_its_regular_expression_does() -> None:
    words = ["".join(word) for size in range(5) for word in product("ab", repeat=size)]
    for size in range(1, 5):
        for letters in product("ab*", repeat=size):
            pattern = "".join(letters)
            model = re.compile(pattern.replace("*", ".*"))
            asked = compiled(frozenset({pattern}))
            assert [asked.match(word) for word in words] == [model.fullmatch(word) is not None for word in words]


def test_a_pattern_of_many_stars_is_asked_in_linear_time() -> None:
    glob = Glob.of("*a" * 99 + "*b*")
    started = time.thread_time()
    assert not glob.matches("a" * 1_000_000)
    assert time.thread_time() - started < 0.5
