from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.policies import ANYTHING, Policy, Rate, covers, merge, policy

names = st.text("ab-", min_size=1, max_size=4)
patterns = names | names.map("{}*".format) | st.just("*")
limits = st.none() | st.integers(1, 50)
rates = st.builds(Rate, st.sampled_from(["org_1", "ws_1", "grp_1", "agt_1"]), limits, limits)
rules = st.builds(policy, st.none() | st.lists(patterns, max_size=4), limits, rates)


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
    assert merge([a, a]) == merge([a]) == merge([a, ANYTHING])


@given(rules, rules, names)
def test_a_merge_allows_exactly_the_models_that_all_allow(a: Policy, b: Policy, name: str) -> None:
    assert merge([a, b]).allows(name) is (a.allows(name) and b.allows(name))


@given(rules, rules)
def test_a_merge_never_widens_a_limit(a: Policy, b: Policy) -> None:
    merged = merge([a, b])
    for one in (a, b):
        if one.max_tokens_per_request is not None:
            assert merged.max_tokens_per_request is not None
            assert merged.max_tokens_per_request <= one.max_tokens_per_request
        for rate in one.rates:
            kept = limit_of(merged, rate.target_id)
            for before, after in (
                (rate.requests_per_minute, kept.requests_per_minute),
                (rate.tokens_per_minute, kept.tokens_per_minute),
            ):
                assert before is None or (after is not None and after <= before)


def test_an_empty_list_of_models_allows_none() -> None:
    assert not policy([], None, Rate("org_1", None, None)).allows("mock-model")


def test_a_star_alone_covers_everything_and_a_name_only_itself() -> None:
    assert covers("*", "anything")
    assert covers("gpt-*", "gpt-6")
    assert not covers("gpt-6", "gpt-6-mini")
