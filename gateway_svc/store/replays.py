"""Runs under a key as they are kept. Time is the database's, so that replicas agree on who has died."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta

from gateway_svc.repeats import LAPSE_SECONDS, RETRY_WINDOW_SECONDS, Grace, Retention, Standing, State
from mesh.db import Database, Row
from mesh.errors import Unavailable

# ruff: noqa: S608  # only OURS is ever put into a statement
TRIES_MAX = 5
LAPSE, RETRY_WINDOW = timedelta(seconds=LAPSE_SECONDS), timedelta(seconds=RETRY_WINDOW_SECONDS)

# One statement decides who runs: of any number at once, in any process, one inserts or takes over.
BEGIN = """
INSERT INTO replays AS kept (agent_id, key_sha256, organization_id, request_sha256, request_id, row_until)
VALUES ($1, $2, $3, $4, $5, now() + $6::interval)
ON CONFLICT (agent_id, key_sha256) DO UPDATE SET
  request_sha256 = excluded.request_sha256, request_id = excluded.request_id, state = 'running', beat_at = now(),
  created_at = now(), status = NULL, head = NULL, transcript = NULL, transcript_until = NULL,
  row_until = excluded.row_until
WHERE kept.beat_at <= now() - CASE kept.state WHEN 'finished' THEN $7::interval ELSE $8::interval END
  OR (kept.row_until <= now() AND kept.beat_at <= now() - $9::interval)
RETURNING true
"""
# Of a finished run for the same request the answer comes along.
STANDING = """
SELECT request_id, request_sha256, state, status, head, beat_at > now() - $4::interval AS alive,
  CASE WHEN request_sha256 = $3 AND transcript_until > now() THEN transcript END AS transcript
FROM replays WHERE agent_id = $1 AND key_sha256 = $2
"""
FINISH = """
UPDATE replays SET state = 'finished', beat_at = now(), status = $4, head = $5, transcript = $6,
  transcript_until = now() + $7::interval, row_until = now() + $8::interval
WHERE agent_id = $1 AND key_sha256 = $2 AND request_id = $3
RETURNING true
"""
OURS = """(
  SELECT unnest($1::text[]) AS agent_id, unnest($2::bytea[]) AS key_sha256, unnest($3::text[]) AS request_id
) AS ours
WHERE kept.agent_id = ours.agent_id AND kept.key_sha256 = ours.key_sha256 AND kept.request_id = ours.request_id
  AND kept.state = 'running'
"""
BEAT = f"UPDATE replays AS kept SET beat_at = now() FROM {OURS}"
DROP = f"DELETE FROM replays AS kept USING {OURS}"
CLEAR_TRANSCRIPTS = """
UPDATE replays SET transcript = NULL WHERE (agent_id, key_sha256) IN (
  SELECT agent_id, key_sha256 FROM replays WHERE transcript IS NOT NULL AND transcript_until <= now()
  ORDER BY transcript_until LIMIT $1 FOR UPDATE SKIP LOCKED)
"""
DELETE_ROWS = """
DELETE FROM replays WHERE (agent_id, key_sha256) IN (
  SELECT agent_id, key_sha256 FROM replays WHERE row_until <= now() AND beat_at <= now() - $2::interval
  ORDER BY row_until LIMIT $1 FOR UPDATE SKIP LOCKED)
"""


@dataclass(frozen=True, slots=True)
class Place:
    """One run under one key: what finds its row, and proves that the row is still this run's."""

    agent_id: str
    organization_id: str
    key_sha256: bytes
    request_sha256: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """An answer as it is kept; `transcript` is None where it was too large."""

    status: int
    head: str
    transcript: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """Another run that has the key, with its answer where one is kept."""

    standing: Standing
    answer: Sealed | None


async def begin(db: Database, place: Place, grace: Grace, row_seconds: int) -> Held | None:
    """Take the key for a run; else return who has it."""
    for _ in range(TRIES_MAX):
        taken = await db.value(
            BEGIN,
            place.agent_id,
            place.key_sha256,
            place.organization_id,
            place.request_sha256,
            place.request_id,
            timedelta(seconds=row_seconds),
            _seconds(grace.finished_seconds),
            _seconds(grace.running_seconds),
            RETRY_WINDOW,
        )
        if taken:
            return None
        row = await db.row(STANDING, place.agent_id, place.key_sha256, place.request_sha256, LAPSE)
        if row is not None:  # else it was dropped between the two, so that the key is free
            return _held(row)
    raise Unavailable("OVERLOADED", "too many requests under one key at once", retry_after_ms=500)


async def finish(db: Database, place: Place, sealed: Sealed, kept: Retention) -> bool:
    """Write a run's outcome, once or again; False where the row is no longer its own."""
    return bool(
        await db.value(
            FINISH,
            place.agent_id,
            place.key_sha256,
            place.request_id,
            sealed.status,
            sealed.head,
            sealed.transcript,
            timedelta(seconds=kept.transcript_seconds),
            timedelta(seconds=kept.row_seconds),
        )
    )


async def beat(db: Database, places: Collection[Place]) -> None:
    """Say of runs that they go on."""
    await db.execute(BEAT, *_columns(places))


async def drop(db: Database, places: Collection[Place]) -> None:
    """Free the keys of runs that came to nothing."""
    await db.execute(DROP, *_columns(places))


async def clear_transcripts(db: Database, limit: int) -> int:
    """Forget answers whose time is over, so many at once; return how many there were."""
    return _count(await db.execute(CLEAR_TRANSCRIPTS, limit))


async def delete_rows(db: Database, limit: int) -> int:
    """Forget keys whose time is over, so many at once; return how many there were."""
    return _count(await db.execute(DELETE_ROWS, limit, RETRY_WINDOW))


def _columns(places: Collection[Place]) -> tuple[list[str], list[bytes], list[str]]:
    return [p.agent_id for p in places], [p.key_sha256 for p in places], [p.request_id for p in places]


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])


def _seconds(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)


def _held(row: Row) -> Held:
    sealed = row["transcript"]
    standing = Standing(
        request_id=row["request_id"],
        request_sha256=row["request_sha256"],
        state=State(row["state"]),
        alive=row["alive"],
        answered=sealed is not None,
    )
    return Held(standing, None if sealed is None else Sealed(row["status"], row["head"], sealed))
