"""Usage into sums, a batch in a transaction with the cursor that says how far they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ledger_svc.latencies import CLASSES, ENDS_MS
from mesh.db import Connection, Database

BATCH_ROWS = 20_000
PAGE = 500
SWEPT_ROWS = 20_000
KINDS = {"organization": 1, "workspace": 2, "agent_group": 3, "agent": 4, "model": 5, "end_user": 6, "api_key": 7}

SUMS = (
    "requests", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "charged_micros", "breach_micros", "estimated", "client_gone", "upstream_errors", "upstream_cuts", "status_4xx",
    "status_5xx", "latency_ms", "overhead_ms", "streamed", "first_token_ms",
)  # fmt: skip
TOKENS = "input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens"
COUNTED = {
    "requests": "count(*)",
    "estimated": "count(*) FILTER (WHERE estimated)",
    "client_gone": "count(*) FILTER (WHERE outcome = 'client_gone')",
    "upstream_errors": "count(*) FILTER (WHERE outcome = 'upstream_error')",
    "upstream_cuts": "count(*) FILTER (WHERE outcome = 'upstream_cut')",
    "status_4xx": "count(*) FILTER (WHERE http_status BETWEEN 400 AND 499)",
    "status_5xx": "count(*) FILTER (WHERE http_status BETWEEN 500 AND 599)",
    "streamed": "count(*) FILTER (WHERE first_token_ms > 0)",
    "first_token_ms": "coalesce(sum(first_token_ms) FILTER (WHERE first_token_ms > 0), 0)::bigint",
}


def counted(name: str) -> str:
    """Return how a sum is made of rows of usage."""
    return f"{COUNTED.get(name) or f'sum({name})::bigint'} AS {name}"


def classes(ends: str) -> str:
    """Return how rows of usage are counted by latency; `ends` is the parameter that holds the classes' ends."""
    number = f"width_bucket(latency_ms, {ends}::int[])"
    counts = ", ".join(f"(count(*) FILTER (WHERE {number} = {place}))::int" for place in range(CLASSES))
    return f"ARRAY[{counts}] AS latencies"


def added(source: str = "") -> str:
    """Return how sums are added up into coarser ones."""
    return ", ".join((*(f"sum({source}{name})::bigint AS {name}" for name in SUMS), added_classes(source)))


def added_classes(source: str = "") -> str:
    """Return how counts by latency are added up."""
    return f"ARRAY[{', '.join(f'sum({source}latencies[{n}])::int' for n in range(1, CLASSES + 1))}] AS latencies"


CELL = f"first_seq, last_seq, {', '.join(SUMS)}, latencies"
# Whose sums a batch touches: one row for each distinct name in it. Usage repeats the same few over and over.
NAMES = """
  SELECT DISTINCT m.kind, m.name
    FROM (SELECT DISTINCT path, provider, model, end_user, api_key_id FROM usage
           WHERE organization_id = $1 AND seq > $2 AND seq <= $3) u
    CROSS JOIN LATERAL (
      SELECT report_kind(node) AS kind, node AS name FROM unnest(u.path) node
      UNION ALL
      VALUES (5::smallint, u.provider || '/' || u.model), (6::smallint, u.end_user), (7::smallint, u.api_key_id)
    ) m
   WHERE m.name <> ''
"""
SUBJECT = """
  SELECT x.id FROM report_subjects x WHERE x.organization_id = $1 AND x.generation = $4 AND x.kind = n.kind
     AND x.name = n.name LIMIT 1
"""  # LIMIT: each name is looked up by the index, however many an organization has
IDS = f"""
  ids AS MATERIALIZED (SELECT n.kind, n.name, s.id FROM ({NAMES}) n CROSS JOIN LATERAL ({SUBJECT}) s)
"""  # noqa: S608  # our own texts, here and below
ADD_SUBJECTS = f"""
  INSERT INTO report_subjects (organization_id, generation, kind, name)
  SELECT $1, $4, n.kind, n.name FROM ({NAMES}) n LEFT JOIN LATERAL ({SUBJECT}) s ON true WHERE s.id IS NULL
"""  # noqa: S608
ADD_SUMS = f"""
  WITH {IDS}, rows AS MATERIALIZED (
    SELECT path, date_bin('15 minutes', used_at, '2020-01-01+00') AS slot, min(seq) AS first_seq, max(seq) AS last_seq,
           {", ".join(counted(name) for name in SUMS)}, {classes("$5")}
      FROM usage WHERE organization_id = $1 AND seq > $2 AND seq <= $3 GROUP BY 1, 2
  ), quarters AS MATERIALIZED (
    SELECT i.id, r.slot, min(r.first_seq) AS first_seq, max(r.last_seq) AS last_seq, {added("r.")}
      FROM rows r CROSS JOIN LATERAL unnest(r.path) node
      JOIN ids i ON i.name = node AND i.kind = report_kind(node) GROUP BY 1, 2
  ), hours AS MATERIALIZED (
    SELECT id, date_trunc('hour', slot, 'UTC') AS slot, min(first_seq) AS first_seq, max(last_seq) AS last_seq, {
    added()
}
      FROM quarters GROUP BY 1, 2
  ), days AS (
    SELECT id, date_trunc('day', slot, 'UTC') AS slot, min(first_seq) AS first_seq, max(last_seq) AS last_seq, {added()}
      FROM hours GROUP BY 1, 2
  ), active AS (
    INSERT INTO usage_activity AS a (subject_id, day, requests, tokens, charged_micros)
    SELECT d.id, d.slot, array_agg(coalesce(q.requests, 0) ORDER BY place),
           array_agg(coalesce({TOKENS}, 0) ORDER BY place),
           array_agg(coalesce(q.charged_micros, 0) ORDER BY place)
      FROM (SELECT DISTINCT id, date_trunc('day', slot, 'UTC') AS slot FROM hours) d
      CROSS JOIN generate_series(0, 95) place
      LEFT JOIN quarters q ON q.id = d.id AND q.slot = d.slot + place * interval '15 minutes'
     GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (subject_id, day) DO UPDATE SET
      requests = add_quarters(a.requests, excluded.requests), tokens = add_quarters(a.tokens, excluded.tokens),
      charged_micros = add_quarters(a.charged_micros, excluded.charged_micros)
  )
  INSERT INTO usage_sums AS s (subject_id, grain_minutes, slot, {CELL})
  SELECT id, 15, slot, {CELL} FROM quarters
  UNION ALL SELECT id, 60, slot, {CELL} FROM hours
  UNION ALL SELECT id, 1440, slot, {CELL} FROM days
  ORDER BY 1, 2, 3  -- so that what is read together lies together
  ON CONFLICT (subject_id, grain_minutes, slot) DO UPDATE SET
    first_seq = least(s.first_seq, excluded.first_seq), last_seq = greatest(s.last_seq, excluded.last_seq),
    {", ".join(f"{name} = s.{name} + excluded.{name}" for name in SUMS)},
    latencies = ARRAY[{
    ", ".join(f"s.latencies[{place}] + excluded.latencies[{place}]" for place in range(1, CLASSES + 1))
}]
"""  # noqa: S608
ADD_SHARES = f"""
  WITH {IDS}, rows AS MATERIALIZED (
    SELECT path, api_key_id, provider || '/' || model AS model, end_user, date_trunc('hour', used_at, 'UTC') AS slot,
           count(*) AS requests, sum({TOKENS})::bigint AS tokens, sum(charged_micros)::bigint AS charged_micros
      FROM usage WHERE organization_id = $1 AND seq > $2 AND seq <= $3 GROUP BY 1, 2, 3, 4, 5
  ), hours AS MATERIALIZED (
    SELECT whose.id, member.kind, r.slot, member.id AS member_id,
           sum(r.requests)::bigint AS requests, sum(r.tokens)::bigint AS tokens,
           sum(r.charged_micros)::bigint AS charged_micros
      FROM rows r
      CROSS JOIN LATERAL unnest(r.path) WITH ORDINALITY p(node, depth)
      CROSS JOIN LATERAL (
        SELECT report_kind(below) AS kind, below AS name FROM unnest(r.path[p.depth + 1:]) below
        UNION ALL VALUES (5::smallint, r.model), (6::smallint, r.end_user), (7::smallint, r.api_key_id)
      ) m
      JOIN ids whose ON whose.name = p.node AND whose.kind = report_kind(p.node)
      JOIN ids member ON member.name = m.name AND member.kind = m.kind
     GROUP BY 1, 2, 3, 4
  )
  INSERT INTO usage_shares AS s (subject_id, kind, grain_minutes, slot, member_id, requests, tokens, charged_micros)
  SELECT id, kind, 60, slot, member_id, requests, tokens, charged_micros FROM hours
  UNION ALL
  SELECT id, kind, 1440, date_trunc('day', slot, 'UTC'), member_id,
         sum(requests)::bigint, sum(tokens)::bigint, sum(charged_micros)::bigint
    FROM hours GROUP BY 1, 2, 4, 5
  ORDER BY 1, 2, 3, 4, 5
  ON CONFLICT (subject_id, kind, grain_minutes, slot, member_id) DO UPDATE SET
    requests = s.requests + excluded.requests, tokens = s.tokens + excluded.tokens,
    charged_micros = s.charged_micros + excluded.charged_micros
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Found:
    """One page of organizations: those with usage that is not in their sums, and where the next page begins."""

    behind: list[str]
    next_after: str | None


async def behind(db: Database, after: str) -> Found:
    """Look through the next 500 organizations that have usage."""
    rows = await db.rows(
        """
        WITH RECURSIVE known(id) AS (
          (SELECT organization_id FROM usage WHERE organization_id > $1 ORDER BY organization_id LIMIT 1)
          UNION ALL
          SELECT (SELECT organization_id FROM usage WHERE organization_id > k.id ORDER BY organization_id LIMIT 1)
            FROM known k WHERE k.id IS NOT NULL
        )
        SELECT k.id, coalesce(c.seq, 0) < h.seq AS behind
          FROM (SELECT id FROM known WHERE id IS NOT NULL LIMIT $2) k
          CROSS JOIN LATERAL (SELECT seq FROM usage WHERE organization_id = k.id ORDER BY seq DESC LIMIT 1) h
          LEFT JOIN report_cursors c ON c.organization_id = k.id
        """,
        after,
        PAGE,
    )
    last: str | None = rows[-1]["id"] if len(rows) == PAGE else None
    return Found([row["id"] for row in rows if row["behind"]], last)


async def roll_up(db: Database, organization_id: str, batch_rows: int = BATCH_ROWS) -> int:
    """Add the next rows of usage to an organization's sums; return how many there were.

    0 too when another process is at it.
    """
    await db.execute("INSERT INTO report_cursors (organization_id) VALUES ($1) ON CONFLICT DO NOTHING", organization_id)
    async with db.transaction() as tx:
        # Plans are made while tables are still small; and a batch is sorted in memory.
        await tx.execute("SET LOCAL enable_seqscan = off; SET LOCAL work_mem = '32MB'")
        cursor = await tx.fetchrow(
            "SELECT generation, seq FROM report_cursors WHERE organization_id = $1 FOR UPDATE SKIP LOCKED",
            organization_id,
        )
        if cursor is None:
            return 0
        return await _add(tx, organization_id, cursor["generation"], cursor["seq"], batch_rows)


async def _add(tx: Connection, organization_id: str, generation: int, seq: int, batch_rows: int) -> int:
    through: Any = await tx.fetchval(
        "SELECT least($2 + $3::int, coalesce(max(seq), 0)) FROM usage WHERE organization_id = $1",
        organization_id,
        seq,
        batch_rows,
    )
    if through <= seq:
        return 0
    batch = (organization_id, seq, through, generation)
    await tx.execute(ADD_SUBJECTS, *batch)
    await tx.execute(ADD_SUMS, *batch, ENDS_MS)
    await tx.execute(ADD_SHARES, *batch)
    await tx.execute("UPDATE report_cursors SET seq = $2 WHERE organization_id = $1", organization_id, through)
    return through - seq


async def rebuild(db: Database, organization_id: str) -> None:
    """Begin an organization's sums anew."""
    await db.execute("SELECT rebuild_reports($1)", organization_id)


async def sweep(db: Database) -> int:
    """Delete some of what earlier generations left behind; return how many rows: 0 when nothing is left."""
    async with db.transaction() as tx:
        ids: Any = await tx.fetchval(
            """
            SELECT coalesce(array_agg(id), '{}') FROM (
              SELECT s.id FROM report_cursors c JOIN report_subjects s USING (organization_id)
               WHERE c.generation > 1 AND s.generation < c.generation LIMIT 100 FOR UPDATE OF s SKIP LOCKED) stale
            """
        )
        for table in ("usage_shares", "usage_activity", "usage_sums"):
            gone = await tx.fetchval(
                f"""
                WITH gone AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                  SELECT ctid FROM {table} WHERE subject_id = ANY ($1) LIMIT $2)) RETURNING 1)
                SELECT count(*) FROM gone
                """,  # noqa: S608
                ids,
                SWEPT_ROWS,
            )
            if gone:
                return int(gone)
        await tx.execute("DELETE FROM report_subjects WHERE id = ANY ($1)", ids)
        return len(ids)
