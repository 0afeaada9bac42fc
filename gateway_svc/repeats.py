"""Whether a completion was asked for before, and what its repeat gets. Pure: what is kept of the first is in `replays`.

A client names a request by an `Idempotency-Key`. SDKs send none, only `x-stainless-retry-count`; with
`x-mandate-dedupe: retries` a retry is known by its body instead.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from gateway_svc.failures import WORTH_A_RETRY
from mesh.errors import Aborted, AlreadyExists, MeshError, invalid

KEY_HEADER, DEDUPE_HEADER, COUNT_HEADER = "idempotency-key", "x-mandate-dedupe", "x-stainless-retry-count"
KEY = re.compile(r"[!-~]{1,255}")
COUNT = re.compile(r"[0-9]{1,4}")
DEDUPES = ("", "off", "retries")
RUNNING_RETRY_MS = 500

# A gateway beats every 5 s for what it runs; one that missed three has died.
LAPSE_SECONDS = 15
# SDKs wait 600 s for an attempt by default, so the retry of a lost answer may come that long after the answer was made.
RETRY_WINDOW_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Keyed:
    """A client's own key: one outcome for ever."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Retries:
    """No key: only what an SDK itself calls a retry is a repeat; `count` 0 is a request of its own."""

    count: int


Wish: TypeAlias = Keyed | Retries


class State(StrEnum):
    """How far the run under a key has come."""

    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Standing:
    """The run that has the key; `alive` says whether its gateway still beats, `answered` whether an answer is kept."""

    request_id: str
    request_sha256: bytes
    state: State
    alive: bool
    answered: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """The repeat gets the kept answer."""


@dataclass(frozen=True, slots=True)
class Apart:
    """The request is one of its own, run without a record: another that looks the same has the key and still runs.

    Nothing a client sends tells the retries of such twins apart, so theirs get the first's answer.
    """


@dataclass(frozen=True, slots=True)
class Grace:
    """How long ago a run must have shown its last sign of life for its key to be taken over; None for never."""

    finished_seconds: int | None
    running_seconds: int | None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long an answer, and the bare fact that its key was used, are kept after its end."""

    transcript_seconds: int
    row_seconds: int


def wish(keys: Sequence[str], dedupe: str, retry_count: str) -> Wish | None:
    """Read what the headers ask for; None when they ask for nothing. InvalidArgument names the header."""
    if len(keys) > 1 or (keys and not KEY.fullmatch(keys[0])):
        raise invalid(KEY_HEADER, "must be given once, as 1 to 255 visible ASCII characters")
    dedupe = dedupe.strip().lower()
    if dedupe not in DEDUPES:
        raise invalid(DEDUPE_HEADER, "must be retries or off")
    if keys:
        return Keyed(keys[0])
    if dedupe != "retries":
        return None
    if retry_count and not COUNT.fullmatch(retry_count):
        raise invalid(COUNT_HEADER, "must be a number")
    return Retries(int(retry_count or "0"))


def request_sha256(method: str, path: str, body: bytes) -> bytes:
    """Return what tells one request from another."""
    return _digest(method.encode(), path.encode(), body)


def key_sha256(wished: Wish, agent_id: str, request: bytes) -> bytes:
    """Return the name under which a run is kept; a client's keys and those made of requests never meet."""
    match wished:
        case Keyed(key):
            return _digest(b"key", agent_id.encode(), key.encode())
        case Retries():
            return _digest(b"retries", agent_id.encode(), request)


def retention(wished: Wish, keyed: Retention) -> Retention:
    """Say how long an outcome is kept: no longer than the retries that it is for."""
    match wished:
        case Keyed():
            return keyed
        case Retries():
            return Retention(RETRY_WINDOW_SECONDS, RETRY_WINDOW_SECONDS)


def grace(wished: Wish) -> Grace:
    """Say when a key that is in use may be taken over."""
    match wished:
        case Keyed():
            return Grace(finished_seconds=None, running_seconds=None)
        case Retries(0):
            return Grace(finished_seconds=0, running_seconds=LAPSE_SECONDS)
        case Retries():
            return Grace(finished_seconds=RETRY_WINDOW_SECONDS, running_seconds=RETRY_WINDOW_SECONDS)


def repeated(wished: Wish, request: bytes, standing: Standing) -> Replayed | Apart:
    """Decide what a request gets whose key another run has; the refusals are errors."""
    if standing.request_sha256 != request:
        raise AlreadyExists(
            "IDEMPOTENCY_MISMATCH", "this idempotency-key was used for another request", field=KEY_HEADER
        )
    if wished == Retries(0):
        return Apart()
    if standing.state is State.RUNNING and standing.alive:
        raise Aborted(
            "IDEMPOTENCY_RUNNING",
            "the same request is still running; ask again for its answer",
            retry_after_ms=RUNNING_RETRY_MS,
        )
    if standing.state is State.RUNNING:
        raise AlreadyExists(
            "IDEMPOTENCY_OUTCOME_UNKNOWN",
            f"the gateway that ran {standing.request_id} broke off; it is not run again, for it may have been charged",
            request_id=standing.request_id,
        )
    if not standing.answered:
        raise expired(standing.request_id)
    return Replayed()


def expired(request_id: str) -> MeshError:
    """Return the error of an outcome whose answer is not kept, or no longer."""
    return AlreadyExists(
        "IDEMPOTENCY_EXPIRED",
        f"{request_id} has run under this key and its answer is not kept; it is not run again",
        request_id=request_id,
    )


def keeps(status: int, charged_micros: int) -> bool:
    """Say whether an outcome is final: a provider's passing refusal that cost nothing may be tried again."""
    return status not in WORTH_A_RETRY or charged_micros > 0


def _digest(*parts: bytes) -> bytes:
    made = hashlib.sha256()
    for part in parts:
        made.update(struct.pack(">Q", len(part)))
        made.update(part)
    return made.digest()
