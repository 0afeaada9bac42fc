"""Usage as reports read it: sums, and the rows that are not in them yet, in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from ledger_svc.latencies import ENDS_MS
from ledger_svc.periods import Piece, runs
from ledger_svc.store.rollups import KINDS, SUMS, TOKENS, added_classes, classes, counted
from mesh.db import Connection, Database, Row
from mesh.errors import NotFound, Unavailable

TAIL_MAX = 300_000  # rows: about a third of a second to go through
TREND = ("requests", *(name for name in SUMS if name.endswith("_tokens")), "charged_micros")
SERVICE = (
    "requests", "upstream_errors", "upstream_cuts", "client_gone", "status_4xx", "status_5xx", "latency_ms",
    "overhead_ms", "streamed", "first_token_ms",
)  # fmt: skip
# Slots are looked up run by run, OFFSET 0 sees to that; which bucket one belongs to is told by the last piece that
# starts before it, for pieces are in order and without gaps. So are the rows behind the cursor.
RUNS = """
  runs AS (SELECT grain, start, stop
             FROM unnest($5::int[], $6::timestamptz[], $7::timestamptz[]) r(grain, start, stop))
"""
SLOTS = "grain_minutes = r.grain AND slot >= r.start AND slot < r.stop"
BUCKET = "($9::int[])[width_bucket({at}, $8::timestamptz[])]"
ROW = """
  path, provider, model, end_user, api_key_id, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
  reasoning_tokens, charged_micros, breach_micros, estimated, outcome, http_status, latency_ms, overhead_ms,
  first_token_ms, used_at
"""
TAIL = f"""
  tail AS (SELECT {BUCKET.format(at="used_at")} AS bucket, {ROW} FROM usage
            WHERE organization_id = $1 AND seq > $4 AND $2 = ANY (path)
              AND used_at >= ($6::timestamptz[])[1] AND used_at < ($7::timestamptz[])[cardinality($7::timestamptz[])])
"""  # noqa: S608  # our own column names, here and below
# Who of a kind stands behind a row; a node counts only those below it.
BELOW = "SELECT node FROM unnest(u.path[array_position(u.path, $2) + 1:]) node WHERE report_kind(node) = "
MEMBERS = {
    "workspace": f"{BELOW}{KINDS['workspace']}",
    "agent_group": f"{BELOW}{KINDS['agent_group']}",
    "agent": f"{BELOW}{KINDS['agent']}",
    "model": "SELECT u.provider || '/' || u.model",
    "end_user": "SELECT u.end_user WHERE u.end_user <> ''",
    "api_key": "SELECT u.api_key_id WHERE u.api_key_id <> ''",
}


@dataclass(frozen=True, slots=True)
class View:
    """One snapshot of a node's usage."""

    connection: Connection
    organization_id: str
    node_id: str
    subject_id: int | None
    seq: int
    now: datetime
    time_zone: str


@asynccontextmanager
async def view(db: Database, organization_id: str, node_id: str, *, tail_max: int = TAIL_MAX) -> AsyncGenerator[View]:
    """Open a snapshot that every report of the block is read from; NOT_FOUND when the node is not the organization's.

    REPORTS_BEHIND while more rows than `tail_max` are not in the sums: after an upgrade, or a rebuild.
    """
    async with db.connection() as lent, lent.transaction(isolation="repeatable_read", readonly=True):
        # Plans must fit the periods that are asked for, and not what the tables were like when they were young.
        await lent.execute("SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_custom_plan")
        row = await lent.fetchrow(
            """
            SELECT ledger_time($1) AS now, time_zone_of($1) AS time_zone, coalesce(c.seq, 0) AS seq, s.id,
                   coalesce((SELECT max(seq) FROM usage WHERE organization_id = $1), 0) - coalesce(c.seq, 0) AS missing,
                   EXISTS (SELECT 1 FROM nodes WHERE id = $2 AND organization_id = $1) AS known
              FROM (VALUES (1)) one(row)
              LEFT JOIN report_cursors c ON c.organization_id = $1
              LEFT JOIN report_subjects s ON s.organization_id = $1 AND s.generation = c.generation
                                         AND s.kind = report_kind($2) AND s.name = $2
            """,
            organization_id,
            node_id,
        )
        if row is None or not row["known"]:
            raise NotFound("NOT_FOUND", f"no {node_id!r} in this organization"[:200], field="node_id")
        if row["missing"] > tail_max:
            raise Unavailable("REPORTS_BEHIND", "reports are being built, try again later", retry_after_ms=10_000)
        yield View(lent, organization_id, node_id, row["id"], row["seq"], row["now"], row["time_zone"])


async def summed(found: View, pieces: Sequence[Piece], names: Sequence[str], *, latencies: bool = False) -> list[Row]:
    """Add up each bucket of `pieces` that has usage, with the counts by latency when asked."""
    kept = [f"sum(s.{name})::bigint AS {name}" for name in names]
    rows = [counted(name) for name in names]
    total = [f"sum({name})::bigint AS {name}" for name in names]
    columns = ", ".join(names)
    ends: list[object] = []
    if latencies:
        kept, rows, total = [*kept, added_classes("s.")], [*rows, classes("$10")], [*total, added_classes()]
        columns = f"{columns}, latencies"
        ends = [ENDS_MS]
    query = f"""
      WITH {RUNS}, {TAIL}, found AS (
        SELECT {BUCKET.format(at="s.slot")} AS bucket, {", ".join(kept)} FROM runs r
          JOIN LATERAL (SELECT slot, {columns} FROM usage_sums
                         WHERE subject_id = $3 AND {SLOTS} OFFSET 0) s ON true GROUP BY 1
        UNION ALL
        SELECT bucket, {", ".join(rows)} FROM tail GROUP BY 1
      )
      SELECT bucket, {", ".join(total)} FROM found GROUP BY 1 ORDER BY 1
    """  # noqa: S608
    return await found.connection.fetch(query, *_values(found, pieces), *ends)


async def active(found: View, pieces: Sequence[Piece], offsets: Sequence[timedelta]) -> list[Row]:
    """Add up usage by hour of the week; hour 0 begins on Thursday at midnight. Each bucket has its offset from UTC."""
    query = f"""
      WITH {RUNS}, {TAIL}, found AS (
        SELECT t.slot AS at, {BUCKET.format(at="t.slot")} AS bucket, q.requests, q.tokens, q.charged_micros FROM runs r
          JOIN LATERAL (SELECT day, requests, tokens, charged_micros FROM usage_activity
                         WHERE subject_id = $3 AND day > r.start - interval '1 day' AND day < r.stop OFFSET 0) a ON true
          CROSS JOIN LATERAL unnest(a.requests, a.tokens, a.charged_micros)
            WITH ORDINALITY q(requests, tokens, charged_micros, place)
          CROSS JOIN LATERAL (SELECT a.day + (q.place - 1) * interval '15 minutes' AS slot) t
         WHERE q.requests > 0 AND t.slot >= r.start AND t.slot < r.stop
        UNION ALL
        SELECT used_at, bucket, 1, {TOKENS}, charged_micros FROM tail
      )
      SELECT ((floor(extract(epoch FROM at))::bigint + ($10::int[])[bucket + 1]) / 3600 % 168)::int AS hour,
             sum(requests)::bigint AS requests, sum(tokens)::bigint AS tokens,
             sum(charged_micros)::bigint AS charged_micros
        FROM found GROUP BY 1 ORDER BY 1
    """  # noqa: S608
    seconds = [offset // timedelta(seconds=1) for offset in offsets]
    return await found.connection.fetch(query, *_values(found, pieces), seconds)


async def top(found: View, pieces: Sequence[Piece], kind: str, measure: str, limit: int) -> list[Row]:
    """Return who of a kind used most. Shares are kept by the hour: what is left of a period is counted in its rows."""
    query = f"""
      WITH {RUNS}, {TAIL}, shares AS (
        SELECT s.member_id, sum(s.requests) AS requests, sum(s.tokens) AS tokens,
               sum(s.charged_micros) AS charged_micros
          FROM runs r
          JOIN LATERAL (SELECT member_id, requests, tokens, charged_micros FROM usage_shares
                         WHERE subject_id = $3 AND kind = $10 AND {SLOTS} OFFSET 0) s ON true GROUP BY 1
      ), ranges AS (
        SELECT r.start, r.stop, s.first_seq, s.last_seq FROM runs r
          JOIN LATERAL (SELECT min(first_seq) AS first_seq, max(last_seq) AS last_seq FROM usage_sums
                         WHERE subject_id = $3 AND {SLOTS}) s ON true
         WHERE r.grain = 15
      ), rest AS (
        SELECT {ROW} FROM ranges r
          JOIN LATERAL (SELECT {ROW} FROM usage
                         WHERE organization_id = $1 AND seq BETWEEN r.first_seq AND r.last_seq
                           AND used_at >= r.start AND used_at < r.stop AND $2 = ANY (path) OFFSET 0) u ON true
        UNION ALL
        SELECT {ROW} FROM tail
      ), found AS (
        SELECT n.name, s.requests, s.tokens, s.charged_micros FROM shares s JOIN report_subjects n ON n.id = s.member_id
        UNION ALL
        SELECT m.name, count(*), sum({TOKENS}), sum(u.charged_micros)
          FROM rest u CROSS JOIN LATERAL ({MEMBERS[kind]}) m(name) GROUP BY 1
      )
      SELECT name, sum(requests)::bigint AS requests, sum(tokens)::bigint AS tokens,
             sum(charged_micros)::bigint AS charged_micros
        FROM found GROUP BY 1 ORDER BY {measure} DESC, name LIMIT $11
    """  # noqa: S608
    return await found.connection.fetch(query, *_values(found, pieces), KINDS[kind], limit)


async def available_micros(found: View) -> int:
    """Return what the organization's wallet has available in the snapshot."""
    row = await found.connection.fetchrow(
        """
        SELECT b.settled - b.held AS available FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b
         WHERE a.organization_id = $1 AND a.kind = 'wallet' AND a.budget_id IS NULL AND a.window_start IS NULL
        """,
        found.organization_id,
    )
    return row["available"] if row else 0


def _values(found: View, pieces: Sequence[Piece]) -> tuple[object, ...]:
    joined = runs(pieces)
    return (
        found.organization_id,
        found.node_id,
        found.subject_id,
        found.seq,
        [run.grain_minutes for run in joined],
        [run.start for run in joined],
        [run.end for run in joined],
        [piece.start for piece in pieces],
        [piece.bucket for piece in pieces],
    )
