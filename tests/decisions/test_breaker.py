from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, multiple, rule

from gateway_svc.breaker import (
    OPEN_MS_MAX,
    PROBE_MS_MAX,
    PROBE_RETRY_MS,
    Admitted,
    CircuitKey,
    Circuits,
    Open,
    fingerprint,
)
from mesh.secret import Secret

KEY = CircuitKey("openai", "https://example.com/v1", "f")
START_MS = 1_000_000.0


def admitted(circuits: Circuits, now_ms: float, key: CircuitKey = KEY) -> Admitted:
    outcome = circuits.admit(key, now_ms)
    assert isinstance(outcome, Admitted), outcome
    return outcome


def fail(circuits: Circuits, now_ms: float, times: int = 1) -> Open | None:
    told = None
    for _ in range(times):
        told = circuits.failed(admitted(circuits, now_ms), now_ms)
    return told


def opened(now_ms: float = START_MS) -> Circuits:
    circuits = Circuits()
    assert fail(circuits, now_ms, 5) == Open(5_000)
    return circuits


def test_five_failures_in_a_row_open_a_circuit_for_5_s() -> None:
    circuits = Circuits()
    assert fail(circuits, START_MS, 4) is None
    assert fail(circuits, START_MS) == Open(5_000)
    assert circuits.admit(KEY, START_MS + 1_500.5) == Open(3_500)
    assert circuits.admit(KEY, START_MS + 4_999) == Open(1)


def test_a_success_between_them_ends_a_row_of_failures() -> None:
    circuits = Circuits()
    fail(circuits, START_MS, 4)
    circuits.succeeded(admitted(circuits, START_MS), START_MS)
    assert fail(circuits, START_MS, 4) is None


@pytest.mark.parametrize(
    ("before", "apart_ms", "after", "opens"),
    [
        ("", 0, "sf" * 10, True),
        ("", 0, "s" + "sf" * 10, False),  # 10 of 21
        ("", 0, "sf" * 9 + "f", False),  # 19 calls are too few
        ("", 0, "ffffs" * 4 + "f", True),
        ("sf" * 9 + "s", 9_000, "f", True),
        ("sf" * 9 + "s", 10_000, "f", False),
        ("s" * 100, 10_000, "ffffs" * 4 + "f", True),
    ],
)
def test_half_of_20_calls_in_10_s_open_a_circuit(before: str, apart_ms: int, after: str, opens: bool) -> None:  # noqa: FBT001  # a column of the table
    circuits = Circuits()
    told: list[Open | None] = []
    for verdicts, now_ms in ((before, START_MS), (after, START_MS + apart_ms)):
        for verdict in verdicts:
            call = admitted(circuits, now_ms)
            if verdict == "f":
                told.append(circuits.failed(call, now_ms))
            else:
                circuits.succeeded(call, now_ms)
    assert told[-1] == (Open(5_000) if opens else None)
    assert not any(told[:-1])


def test_one_call_alone_is_let_through_after_the_pause() -> None:
    circuits = opened()
    probe = admitted(circuits, START_MS + 5_000)
    assert circuits.admit(KEY, START_MS + 5_000) == Open(PROBE_RETRY_MS)
    circuits.succeeded(probe, START_MS + 5_010)
    for _ in range(10):
        admitted(circuits, START_MS + 5_010)


def test_each_probe_that_fails_doubles_the_pause_up_to_60_s() -> None:
    circuits, now_ms, pauses = opened(), START_MS + 5_000, list[int]()
    for _ in range(6):
        told = fail(circuits, now_ms)
        assert told
        pauses.append(told.retry_after_ms)
        assert circuits.admit(KEY, now_ms + told.retry_after_ms - 1) == Open(1)
        now_ms += told.retry_after_ms
    assert pauses == [10_000, 20_000, 40_000, 60_000, 60_000, 60_000]


def test_a_circuit_that_closed_begins_with_the_shortest_pause_and_an_empty_row() -> None:
    circuits = opened()
    fail(circuits, START_MS + 5_000)
    now_ms = START_MS + 15_000
    circuits.succeeded(admitted(circuits, now_ms), now_ms)
    assert fail(circuits, now_ms, 4) is None
    assert fail(circuits, now_ms) == Open(5_000)


def test_a_circuit_that_closed_counts_no_call_of_before() -> None:
    circuits = Circuits()
    for _ in range(10):
        circuits.succeeded(admitted(circuits, START_MS), START_MS)
    for _ in range(2):
        fail(circuits, START_MS, 4)
        circuits.succeeded(admitted(circuits, START_MS), START_MS)
    assert fail(circuits, START_MS, 4) == Open(5_000)  # 12 of 24
    now_ms = START_MS + 5_000
    circuits.succeeded(admitted(circuits, now_ms), now_ms)
    assert fail(circuits, now_ms) is None


def test_a_probe_that_says_nothing_frees_its_place() -> None:
    circuits = opened()
    circuits.abandoned(admitted(circuits, START_MS + 5_000))
    probe = admitted(circuits, START_MS + 5_000)
    circuits.succeeded(probe, START_MS + 5_000)
    circuits.abandoned(probe)  # as `finally` does
    admitted(circuits, START_MS + 5_000)


@pytest.mark.parametrize(("asked_ms", "open_ms"), [(1, 1), (30_000, 30_000), (60_001, 60_000), (86_400_000, 60_000)])
def test_a_429_opens_for_as_long_as_it_says_and_at_most_60_s(asked_ms: int, open_ms: int) -> None:
    circuits = Circuits()
    assert circuits.limited(admitted(circuits, START_MS), asked_ms, START_MS) == Open(open_ms)
    assert circuits.admit(KEY, START_MS) == Open(open_ms)
    admitted(circuits, START_MS + open_ms)


def test_a_429_is_no_failure() -> None:
    circuits, now_ms = Circuits(), START_MS
    fail(circuits, now_ms, 4)
    for _ in range(3):
        circuits.limited(admitted(circuits, now_ms), 100, now_ms)
        now_ms += 100
    assert fail(circuits, now_ms) == Open(5_000)  # the probe, which opens for the shortest pause


def test_a_429_that_names_no_time_opens_nothing_and_frees_a_probes_place() -> None:
    circuits = opened()
    assert circuits.limited(admitted(circuits, START_MS + 5_000), 0, START_MS + 5_000) is None
    circuits.succeeded(admitted(circuits, START_MS + 5_000), START_MS + 5_000)
    assert circuits.limited(admitted(circuits, START_MS + 5_000), -1, START_MS + 5_000) is None
    admitted(circuits, START_MS + 5_000)


def test_calls_from_before_a_circuit_opened_have_no_say() -> None:
    circuits = Circuits()
    early = [admitted(circuits, START_MS) for _ in range(4)]
    fail(circuits, START_MS, 5)
    probe = admitted(circuits, START_MS + 5_000)
    circuits.succeeded(early[0], START_MS + 5_000)
    circuits.abandoned(early[1])
    assert circuits.failed(early[2], START_MS + 5_000) is None
    assert circuits.limited(early[3], 60_000, START_MS + 5_000) is None
    assert circuits.admit(KEY, START_MS + 5_000) == Open(PROBE_RETRY_MS)
    assert circuits.failed(probe, START_MS + 5_000) == Open(10_000)


def test_one_keys_circuit_says_nothing_of_another_keys_address_or_provider() -> None:
    circuits = opened()
    for key in (
        CircuitKey("openai", KEY.base_url, "g"),
        CircuitKey("openai", "", "f"),
        CircuitKey("other", KEY.base_url, "f"),
    ):
        admitted(circuits, START_MS, key)


def test_the_circuit_that_was_longest_unused_is_given_up_and_its_calls_have_no_say() -> None:
    circuits = Circuits(circuits_max=2)
    first, second, third = (CircuitKey("openai", "", str(number)) for number in range(3))
    before = [admitted(circuits, START_MS, second) for _ in range(5)]
    admitted(circuits, START_MS, first)
    admitted(circuits, START_MS, third)  # `second` goes
    admitted(circuits, START_MS, second)  # and comes anew
    assert [circuits.failed(each, START_MS) for each in before] == [None] * 5
    admitted(circuits, START_MS, second)


def test_a_fingerprint_tells_keys_apart_and_shows_none() -> None:
    prints = {fingerprint(secret) for secret in (None, Secret("sk-one"), Secret("sk-two"))}
    assert len(prints) == 3
    assert not any("sk-" in each for each in prints)


class Breaking(RuleBasedStateMachine):
    """One circuit under calls that overlap and end in any way and any order, beside a model of what is known of it.

    From the verdict that opens it until its probe succeeds it is shut, and whatever it admits meanwhile is a probe.
    """

    calls: Bundle[Admitted] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.circuits = Circuits()
        self.now_ms = START_MS
        self.shut_until_ms: float | None = None
        self.probes: list[Admitted] = []  # since it was opened; the last one may be given up
        self.next_probe_ms = 0.0

    @rule(ms=st.sampled_from([1, 400, 1_000, 5_000, 20_000, 60_000]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @rule(target=calls, times=st.integers(1, 8))
    def ask(self, times: int) -> MultipleResults[Admitted]:
        admitted: list[Admitted] = []
        for _ in range(times):
            outcome = self.circuits.admit(KEY, self.now_ms)
            may = self.shut_until_ms is None or self.now_ms >= max(self.shut_until_ms, self.next_probe_ms)
            assert isinstance(outcome, Admitted if may else Open), "one probe in 10 s, and one is always let in"
            if isinstance(outcome, Open):
                assert 0 < outcome.retry_after_ms <= OPEN_MS_MAX
                continue
            if self.shut_until_ms is not None:
                self.probed(outcome)
            admitted.append(outcome)
        return multiple(*admitted)

    @rule(call=consumes(calls), verdict=st.sampled_from(["succeeded", "failed", "limited", "abandoned"]))
    def end(self, call: Admitted, verdict: str) -> None:
        told = None
        match verdict:
            case "succeeded":
                self.circuits.succeeded(call, self.now_ms)
            case "failed":
                told = self.circuits.failed(call, self.now_ms)
            case "limited":
                told = self.circuits.limited(call, 90_000, self.now_ms)
            case _:
                pass
        self.circuits.abandoned(call)
        is_probe = call in self.probes
        if is_probe and verdict == "succeeded":
            self.shut_until_ms, self.probes = None, []
        elif self.probes and call == self.probes[-1]:
            self.next_probe_ms = 0.0
        if told is not None:
            assert self.shut_until_ms is None or is_probe, "calls from before have no say"
            assert told.retry_after_ms <= OPEN_MS_MAX
            self.shut_until_ms, self.probes, self.next_probe_ms = self.now_ms + told.retry_after_ms, [], 0.0

    def probed(self, outcome: Admitted) -> None:
        self.probes.append(outcome)
        self.next_probe_ms = self.now_ms + PROBE_MS_MAX

    @rule(failures=st.just(5))
    def fail_in_a_row(self, failures: int) -> None:
        """Open it, which chance alone seldom does."""
        for _ in range(failures):
            outcome = self.circuits.admit(KEY, self.now_ms)
            if isinstance(outcome, Open):
                return
            if self.shut_until_ms is not None:
                self.probed(outcome)
            self.end(outcome, "failed")


TestBreaking = Breaking.TestCase
TestBreaking.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
