from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.limits import MINUTE_MS, NOTHING_TAKEN, Limit, Taken, exceeded, limits, too_large
from gateway_svc.policies import PER_MINUTE_MAX, Rate, Terms
from gateway_svc.terms import checked_terms
from mesh.errors import InvalidArgument

AT_MS = 1_755_780_059_001  # 2025-08-21T12:40:59.001Z
GO_DURATION = re.compile(r"(?:([0-9]+)m)?([0-9]+(?:\.[0-9]+)?)s|([0-9]+)ms")
per_minute = st.integers(1, PER_MINUTE_MAX)


def limit(kind: str, per_minute: int, target_id: str = "agt_1") -> Limit:
    return Limit(target_id, kind, per_minute, f"key of {target_id}")


def standing(*pairs: tuple[Limit, int]) -> Taken:
    return Taken("org_1", 1, AT_MS, tuple(limit for limit, _ in pairs), tuple(level for _, level in pairs))


def test_the_headers_are_those_of_openai() -> None:
    taken = standing((limit("requests", 60), 1 * MINUTE_MS), (limit("tokens", 150_000), 16 * MINUTE_MS))
    assert taken.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "7ms",
    }


def test_the_headers_are_those_of_anthropic() -> None:
    taken = standing((limit("requests", 60), 1 * MINUTE_MS), (limit("tokens", 96_000), 0))
    assert taken.anthropic_headers() == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2025-08-21T12:41:01Z",
        "anthropic-ratelimit-tokens-limit": "96000",
        "anthropic-ratelimit-tokens-remaining": "96000",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T12:41:00Z",
    }


def test_the_headers_tell_of_the_limit_with_least_room() -> None:
    wide, narrow = limit("requests", 1_000, "org_1"), limit("requests", 10, "agt_1")
    taken = standing((wide, 995 * MINUTE_MS), (narrow, 2 * MINUTE_MS))
    assert taken.headers()["x-ratelimit-limit-requests"] == "1000"
    assert taken.anthropic_headers()["anthropic-ratelimit-requests-remaining"] == "5"


def test_without_a_limit_there_are_no_headers() -> None:
    assert NOTHING_TAKEN.headers() == NOTHING_TAKEN.anthropic_headers() == {}


@pytest.mark.parametrize(
    ("level", "told"),
    [(0, "0s"), (1, "1ms"), (120, "120ms"), (999, "999ms"), (1_000, "1s"), (8_640, "8.64s"), (59_999, "59.999s"),
     (60_000, "1m0s"), (61_050, "1m1.05s"), (500_000, "2m0s")],
)  # fmt: skip
def test_a_reset_is_a_duration_as_go_writes_it(level: int, told: str) -> None:
    assert standing((limit("requests", 1), level)).headers()["x-ratelimit-reset-requests"] == told


@given(per_minute, st.integers(0, 2 * PER_MINUTE_MAX * MINUTE_MS))
def test_a_reset_reads_as_the_time_until_the_bucket_is_empty(per_minute: int, level: int) -> None:
    one = limit("tokens", per_minute)
    found = GO_DURATION.fullmatch(standing((one, level)).headers()["x-ratelimit-reset-tokens"])
    assert found is not None
    minutes, seconds, ms = found.groups()
    assert one.empty_ms(level) == (int(ms) if ms else int(minutes or 0) * 60_000 + round(float(seconds) * 1000))


@given(per_minute, st.data())
def test_what_waits_as_long_as_it_is_told_fits_and_not_before(per_minute: int, data: st.DataObject) -> None:
    one = limit("tokens", per_minute)
    asked, room = one.asked(data.draw(st.integers(0, per_minute))), per_minute * MINUTE_MS
    level = data.draw(st.integers(0, room))
    wait_ms = one.wait_ms(level, asked)
    assert max(0, level - wait_ms * per_minute) + asked * MINUTE_MS <= room
    if wait_ms:
        assert level - (wait_ms - 1) * per_minute + asked * MINUTE_MS > room


@given(st.lists(per_minute, max_size=3), st.integers(0, 2 * PER_MINUTE_MAX))
def test_a_request_fits_into_empty_buckets_or_is_refused_for_ever(limits_of_path: list[int], tokens: int) -> None:
    of_path = [limit("requests", 1), *(limit("tokens", each) for each in limits_of_path)]
    waits_ms = [each.wait_ms(0, each.asked(tokens)) for each in of_path]
    refusal = too_large(of_path, tokens)
    assert (refusal is None) == (max(waits_ms) == 0)
    assert refusal is None or refusal.retry_after_ms is None


def test_a_refusal_names_the_limit_that_is_waited_for_longest() -> None:
    found = standing((limit("requests", 60), 60 * MINUTE_MS), (limit("tokens", 100, "ws_1"), 62 * MINUTE_MS))
    refusal = exceeded(found, (1, 40))
    assert (refusal.reason, refusal.retry_after_ms, refusal.taken) == ("RATE_LIMIT_EXCEEDED", 1_200, found)
    assert refusal.message == "rate limit reached (tokens per minute of ws_1); try again in 1.2s"


def test_a_refusal_never_says_too_short_a_time() -> None:
    one = limit("requests", 7)
    refusal = exceeded(standing((one, 7 * MINUTE_MS)), (1,))
    assert refusal.retry_after_ms == 8_572
    assert "try again in 8.6s" in refusal.message


def test_the_keys_of_a_path_share_the_slot_of_their_organization() -> None:
    found = limits("org_1", (Rate("agt_1", 5, None), Rate("org_1", 9, 7)))
    assert [(each.key, each.per_minute) for each in found] == [
        ("gateway:rate:{org_1}:requests:agt_1", 5),
        ("gateway:rate:{org_1}:requests:org_1", 9),
        ("gateway:rate:{org_1}:tokens:org_1", 7),
    ]


def test_a_limit_from_before_there_was_a_largest_counts_as_the_largest() -> None:
    (found,) = limits("org_1", (Rate("agt_1", None, 10**12),))
    assert found.per_minute == PER_MINUTE_MAX


@pytest.mark.parametrize(
    ("field", "most"),
    [("requests_per_minute", 10**11), ("tokens_per_minute", 10**11), ("max_tokens_per_request", 10**12)],
)
def test_a_limit_may_be_so_large_and_no_larger(field: str, most: int) -> None:
    terms = replace(Terms(), **{field: most})
    assert checked_terms(terms) == terms
    with pytest.raises(InvalidArgument) as raised:
        checked_terms(replace(Terms(), **{field: most + 1}))
    assert raised.value.details["field"] == field
