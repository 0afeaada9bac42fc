from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc import failures, repeats
from gateway_svc.recording import EVENTS, JSON, Recorder, opened, packed
from gateway_svc.repeats import Apart, Keyed, Replayed, Retention, Retries, Standing, State
from gateway_svc.shares import Shares
from mesh.errors import InvalidArgument, MeshError, Unavailable

THIS, OTHER = b"\1" * 32, b"\2" * 32
KEYED, FIRST, RETRY = Keyed("k"), Retries(0), Retries(1)


def standing(state: State, *, alive: bool = True, answered: bool = False, request: bytes = THIS) -> Standing:
    return Standing("req_1", request, state, alive, answered)


@pytest.mark.parametrize(
    ("keys", "dedupe", "count", "expected"),
    [
        ([], "", "", None),
        ([], "", "1", None),
        ([], "off", "1", None),
        (["k"], "", "", Keyed("k")),
        (["k"], "retries", "1", Keyed("k")),
        (["~" * 255], "", "", Keyed("~" * 255)),
        ([], "retries", "", Retries(0)),
        ([], " Retries ", "0", Retries(0)),
        ([], "retries", "2", Retries(2)),
    ],
)
def test_headers_say_what_is_wished(keys: list[str], dedupe: str, count: str, expected: repeats.Wish | None) -> None:
    assert repeats.wish(keys, dedupe, count) == expected


@pytest.mark.parametrize(
    ("keys", "dedupe", "count", "named"),
    [
        ([""], "", "", "idempotency-key"),
        (["k" * 256], "", "", "idempotency-key"),
        (["two words"], "", "", "idempotency-key"),
        (["k\n"], "", "", "idempotency-key"),
        (["kéy"], "", "", "idempotency-key"),
        (["one", "two"], "", "", "idempotency-key"),
        ([], "always", "", "x-mandate-dedupe"),
        ([], "retries", "-1", "x-stainless-retry-count"),
        ([], "retries", "٣", "x-stainless-retry-count"),
    ],
)
def test_a_bad_header_is_refused_by_its_name(keys: list[str], dedupe: str, count: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        repeats.wish(keys, dedupe, count)
    assert refused.value.details["field"] == named


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Keyed("secret"))


REFUSALS = [
    (KEYED, standing(State.FINISHED, answered=True, request=OTHER), "IDEMPOTENCY_MISMATCH", 422),
    (KEYED, standing(State.RUNNING, request=OTHER), "IDEMPOTENCY_MISMATCH", 422),
    (KEYED, standing(State.RUNNING, alive=False, request=OTHER), "IDEMPOTENCY_MISMATCH", 422),
    (KEYED, standing(State.RUNNING), "IDEMPOTENCY_RUNNING", 409),
    (KEYED, standing(State.RUNNING, alive=False), "IDEMPOTENCY_OUTCOME_UNKNOWN", 409),
    (KEYED, standing(State.FINISHED), "IDEMPOTENCY_EXPIRED", 409),
    (RETRY, standing(State.RUNNING), "IDEMPOTENCY_RUNNING", 409),
    (RETRY, standing(State.RUNNING, alive=False), "IDEMPOTENCY_OUTCOME_UNKNOWN", 409),
    (RETRY, standing(State.FINISHED), "IDEMPOTENCY_EXPIRED", 409),
]


@pytest.mark.parametrize(("wished", "found", "reason", "status"), REFUSALS)
def test_a_repeat_without_an_answer_is_told_why(
    wished: repeats.Wish, found: Standing, reason: str, status: int
) -> None:
    with pytest.raises(MeshError) as refused:
        repeats.repeated(wished, THIS, found)
    told = failures.failure(refused.value)
    assert (refused.value.reason, told.status) == (reason, status)
    # SDKs ask again on any 409 unless they are told not to; only what still runs is worth it.
    running = reason == "IDEMPOTENCY_RUNNING"
    assert told.headers.get("x-should-retry") == (None if running else "false")
    assert told.headers.get("retry-after-ms") == ("500" if running else None)


def test_an_unknown_outcome_names_the_request() -> None:
    with pytest.raises(MeshError, match="req_1"):
        repeats.repeated(KEYED, THIS, standing(State.RUNNING, alive=False))


@pytest.mark.parametrize("wished", [KEYED, RETRY])
def test_a_finished_run_is_replayed(wished: repeats.Wish) -> None:
    assert repeats.repeated(wished, THIS, standing(State.FINISHED, answered=True)) == Replayed()


@pytest.mark.parametrize("state", State)
def test_a_first_attempt_is_never_another_ones_repeat(state: State) -> None:
    assert repeats.repeated(FIRST, THIS, standing(state, answered=True)) == Apart()


def test_only_keys_of_requests_are_taken_over() -> None:
    assert repeats.grace(KEYED) == repeats.Grace(None, None)
    assert repeats.grace(FIRST) == repeats.Grace(0, repeats.LAPSE_SECONDS)
    assert repeats.grace(RETRY) == repeats.Grace(repeats.RETRY_WINDOW_SECONDS, repeats.RETRY_WINDOW_SECONDS)


def test_what_is_kept_for_retries_is_not_kept_longer_than_they_come() -> None:
    days = Retention(86_400, 30 * 86_400)
    assert repeats.retention(KEYED, days) == days
    assert repeats.retention(RETRY, days).transcript_seconds == repeats.RETRY_WINDOW_SECONDS


def test_keys_of_agents_and_of_requests_never_meet() -> None:
    made = [
        repeats.key_sha256(wished, agent, THIS)
        for wished in (KEYED, Keyed("l"), Keyed(THIS.decode("latin-1")), RETRY)
        for agent in ("a", "b", "ak")
    ]
    assert len(set(made)) == len(made)
    assert repeats.key_sha256(FIRST, "a", THIS) == repeats.key_sha256(RETRY, "a", THIS)


@given(st.tuples(st.text(), st.text(), st.binary()), st.tuples(st.text(), st.text(), st.binary()))
def test_two_requests_have_one_digest_only_when_equal(
    one: tuple[str, str, bytes], other: tuple[str, str, bytes]
) -> None:
    assert (repeats.request_sha256(*one) == repeats.request_sha256(*other)) == (one == other)


def test_where_a_part_of_a_request_ends_is_part_of_it() -> None:
    assert repeats.request_sha256("POST", "/v1/a", b"b") != repeats.request_sha256("POST", "/v1/", b"ab")


@pytest.mark.parametrize(
    ("status", "charged_micros", "kept"),
    [(200, 5, True), (200, 0, True), (400, 0, True), (404, 0, True), (429, 0, False), (503, 0, False), (502, 7, True)],
)
def test_a_passing_refusal_that_cost_nothing_is_not_final(status: int, charged_micros: int, kept: bool) -> None:  # noqa: FBT001
    assert repeats.keeps(status, charged_micros) is kept


def recorder(bytes_max: int = 10, room_bytes: int = 100) -> Recorder:
    made = Recorder(bytes_max, Shares(room_bytes, Fraction(1, 2)), "org_a")
    made.begin(200, EVENTS, {})
    return made


def test_a_transcript_holds_what_was_written_in_order() -> None:
    made = recorder()
    made.write(b"one ")
    made.write(b"two")
    assert made.transcript().body == b"one two"


@pytest.mark.parametrize(("last", "body"), [(b"5", b"0123456785"), (b"56", None)])
def test_an_answer_past_the_bound_has_no_body(last: bytes, body: bytes | None) -> None:
    made = recorder(bytes_max=10)
    made.write(b"012345678")
    made.write(last)
    assert made.transcript().body == body


def test_an_answer_past_the_bound_stays_so() -> None:
    made = recorder(bytes_max=10)
    for part in (b"0" * 11, b"1"):
        made.write(part)
    assert made.transcript().body is None


def test_recordings_share_a_room_and_give_it_back() -> None:
    room = Shares(25, Fraction(1, 2))
    one, two, three = (Recorder(10, room, "org_a") for _ in range(3))
    for made in (one, two, three):
        made.begin(200, EVENTS, {})
    one.write(b"0" * 10)
    two.write(b"0" * 10)
    one.close()
    three.write(b"0" * 10)
    assert [len(made.transcript().body or b"") for made in (two, three)] == [0, 10]


def test_one_organizations_recordings_leave_room_to_another() -> None:
    room = Shares(100, Fraction(1, 4))
    for number in range(20):
        made = Recorder(10, room, "org_greedy")
        made.begin(200, EVENTS, {})
        made.write(b"0" * 10)
        assert (made.transcript().body is not None) is (number < 2)
    other = Recorder(10, room, "org_other")
    other.begin(200, EVENTS, {})
    other.write(b"0" * 10)
    assert other.transcript().body == b"0" * 10


def test_a_closed_recording_takes_no_room() -> None:
    room = Shares(20, Fraction(1, 2))
    closed, other = Recorder(10, room, "org_a"), Recorder(10, room, "org_b")
    other.begin(200, EVENTS, {})
    closed.close()
    closed.write(b"0" * 10)
    other.write(b"0" * 10)
    assert other.transcript().body == b"0" * 10


def test_only_headers_that_stay_true_are_kept() -> None:
    made = recorder()
    headers = {
        "X-Mandate-Max-Tokens": "7",
        "x-mandate-instance": "gateway-0",
        "x-request-id": "req_1",
        "x-ratelimit-limit-requests": "9",
        "x-should-retry": "false",
    }
    made.whole(400, b"{}", headers)
    found = made.transcript()
    assert dict(found.headers) == {"x-mandate-max-tokens": "7", "x-should-retry": "false"}
    assert (found.status, found.content_type) == (400, JSON)


def test_an_error_is_recorded_as_its_client_reads_it() -> None:
    made = recorder(bytes_max=1_000, room_bytes=1_000)
    told = failures.failure(failures.cut())
    made.whole(told.status, b"upstream_cut", told.headers)
    found = made.transcript()
    assert (found.status, dict(found.headers)) == (502, {"x-should-retry": "false"})
    assert b"upstream_cut" in (found.body or b"")


def test_an_errors_retry_time_is_not_kept() -> None:
    made = recorder(bytes_max=1_000, room_bytes=1_000)
    told = failures.failure(Unavailable("UPSTREAM_UNREACHABLE", "down", retry_after_ms=5))
    made.whole(told.status, b"", told.headers)
    assert not made.transcript().headers


def test_an_answer_that_was_not_begun_has_no_transcript() -> None:
    with pytest.raises(RuntimeError, match="not begun"):
        Recorder(10, Shares(10, Fraction(1, 2)), "org_a").transcript()


@given(st.binary(), st.dictionaries(st.text(alphabet="abc-"), st.text()))
def test_a_transcript_opens_as_it_was_packed(body: bytes, named: dict[str, str]) -> None:
    made = Recorder(10_000, Shares(20_000, Fraction(1, 2)), "org_a")
    made.whole(201, body, {f"x-mandate-{name}": text for name, text in named.items()})
    whole = made.transcript()
    assert opened(whole.status, whole.head(), packed(body)) == whole
