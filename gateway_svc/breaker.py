"""Circuit breakers: one for each upstream and key, so that what keeps failing is not asked for a while. Pure.

The time is passed in, as milliseconds of a clock that never goes back. A call that was admitted before its circuit
opened, closed or probed has no say any more: its generation has passed. What counts as a failure is the caller's word.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from mesh.secret import Secret

FAILURES_MAX = 5  # in a row
WINDOW_SECONDS = 10
WINDOW_CALLS_MIN = 20
FAILED_SHARE_MAX = 0.5
OPEN_MS_MIN, OPEN_MS_MAX = 5_000, 60_000
PROBE_RETRY_MS = 1_000  # what is told while a probe is under way, whose end nobody knows
PROBE_MS_MAX = 10_000  # after so long the next call is a probe as well: one may be an answer of minutes
CIRCUITS_MAX = 10_000
FINGERPRINT_BYTES = 16


class CircuitKey(NamedTuple):
    """What fails together: one model at one address of one provider, asked with one key.

    Each organization has circuits of its own, so that no tenant's requests can shut the others out. A tuple, as it is
    looked up several times for each call.
    """

    provider: str
    base_url: str
    fingerprint: str
    model: str = ""
    organization_id: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Leave to ask once; whoever holds it gives a verdict, and `abandoned` last of all, which then does nothing."""

    key: CircuitKey
    generation: int


@dataclass(frozen=True, slots=True)
class Open:
    """No leave: nothing is sent before so many milliseconds have passed."""

    retry_after_ms: int


def fingerprint(secret: Secret | None) -> str:
    """Return what tells one key from another and gives neither away."""
    text = secret.reveal() if secret is not None else ""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=FINGERPRINT_BYTES).hexdigest()


class _State(Enum):
    CLOSED = auto()
    OPEN = auto()  # from `until_ms` on half-open: the next call is the probe
    PROBING = auto()


@dataclass(slots=True)
class _Second:
    second: int
    calls: int = 0
    failures: int = 0


def _seconds() -> deque[_Second]:
    return deque(maxlen=WINDOW_SECONDS)


@dataclass(slots=True)
class _Circuit:
    generation: int
    state: _State = _State.CLOSED
    until_ms: float = 0.0
    probes_from: int = 0  # the generation of the first probe since it was opened: all of them have a say
    pause_ms: int = 0  # how long failures have kept it open last; 0: not since it was closed
    failures_in_row: int = 0
    seconds: deque[_Second] = field(default_factory=_seconds)

    def count(self, now_ms: float, *, failed: bool) -> None:
        now = int(now_ms // 1_000)
        if not self.seconds or self.seconds[-1].second != now:
            self.seconds.append(_Second(now))
        self.seconds[-1].calls += 1
        self.seconds[-1].failures += failed
        self.failures_in_row = self.failures_in_row + 1 if failed else 0

    def fails_too_often(self, now_ms: float) -> bool:
        if self.failures_in_row >= FAILURES_MAX:
            return True
        since = int(now_ms // 1_000) - WINDOW_SECONDS
        lately = [each for each in self.seconds if each.second > since]
        calls = sum(each.calls for each in lately)
        return calls >= WINDOW_CALLS_MIN and sum(each.failures for each in lately) >= calls * FAILED_SHARE_MAX


class Circuits:
    """The circuits in use lately, the longest unused given up first; one that is not known is closed."""

    def __init__(self, circuits_max: int = CIRCUITS_MAX) -> None:
        self._circuits_max = circuits_max
        self._circuits: OrderedDict[CircuitKey, _Circuit] = OrderedDict()
        self._generations = itertools.count(1)

    def admit(self, key: CircuitKey, now_ms: float) -> Admitted | Open:
        """Say whether a call may be sent; after a pause one call alone may, as a probe, or one every 10 s."""
        circuit = self._circuit(key)
        match circuit.state:
            case _State.CLOSED:
                return Admitted(key, circuit.generation)
            case _State.PROBING:
                if now_ms < circuit.until_ms:
                    return Open(PROBE_RETRY_MS)
                self._turn(circuit, _State.PROBING)
            case _State.OPEN:
                if now_ms < circuit.until_ms:
                    return Open(math.ceil(circuit.until_ms - now_ms))
                self._turn(circuit, _State.PROBING)
                circuit.probes_from = circuit.generation
        circuit.until_ms = now_ms + PROBE_MS_MAX
        return Admitted(key, circuit.generation)

    def succeeded(self, admitted: Admitted, now_ms: float) -> None:
        """Take note of an upstream that works; a probe closes its circuit."""
        circuit = self._judged(admitted)
        if circuit is None:
            return
        if circuit.state is _State.PROBING:
            self._turn(circuit, _State.CLOSED)
            circuit.pause_ms = circuit.failures_in_row = 0
            circuit.seconds.clear()
        circuit.count(now_ms, failed=False)

    def failed(self, admitted: Admitted, now_ms: float) -> Open | None:
        """Take note of a failure; return for how long it opens the circuit, None when it doesn't."""
        circuit = self._judged(admitted)
        if circuit is None:
            return None
        if circuit.state is _State.CLOSED:
            circuit.count(now_ms, failed=True)
            if not circuit.fails_too_often(now_ms):
                return None
        circuit.pause_ms = min(max(circuit.pause_ms * 2, OPEN_MS_MIN), OPEN_MS_MAX)
        return self._open(circuit, now_ms, circuit.pause_ms)

    def limited(self, admitted: Admitted, retry_after_ms: int, now_ms: float) -> Open | None:
        """Keep away for as long as an upstream asked with 429 and retry-after, at most 60 s; that is no failure."""
        circuit = self._judged(admitted)
        if circuit is None or retry_after_ms <= 0:
            self.abandoned(admitted)
            return None
        return self._open(circuit, now_ms, min(retry_after_ms, OPEN_MS_MAX))

    def abandoned(self, admitted: Admitted) -> None:
        """Take note of a call that ended and says nothing about its upstream; the next call may be the probe."""
        circuit = self._circuits.get(admitted.key)
        if circuit is None or circuit.generation != admitted.generation or circuit.state is not _State.PROBING:
            return
        self._turn(circuit, _State.OPEN)
        circuit.until_ms = 0.0

    def _circuit(self, key: CircuitKey) -> _Circuit:
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._circuits[key] = _Circuit(next(self._generations))
            if len(self._circuits) > self._circuits_max:
                self._circuits.popitem(last=False)
        else:
            self._circuits.move_to_end(key)
        return circuit

    def _judged(self, admitted: Admitted) -> _Circuit | None:
        """Return the circuit on which a call still has a say."""
        circuit = self._circuits.get(admitted.key)
        if circuit is None:
            return None
        oldest = circuit.probes_from if circuit.state is _State.PROBING else circuit.generation
        return circuit if oldest <= admitted.generation else None

    def _open(self, circuit: _Circuit, now_ms: float, pause_ms: int) -> Open:
        self._turn(circuit, _State.OPEN)
        circuit.until_ms = now_ms + pause_ms
        return Open(pause_ms)

    def _turn(self, circuit: _Circuit, state: _State) -> None:
        circuit.state = state
        circuit.generation = next(self._generations)
