"""Measure usage reports over 10,000,000 completions of one organization, and how fast usage goes into their sums.

Run it as `make bench-reports`; `ARGS="1000000"` takes fewer rows. Every report is asked for over mutual TLS with varied
periods, nodes and time zones, held to its limit, and compared with a recount of the rows.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc.commits import Commits
from ledger_svc.keys import LedgerKeys
from ledger_svc.price_book import PriceBook
from ledger_svc.service import Ledger
from ledger_svc.store import registry, rollups
from mandate.ledger.v1 import reports_pb2 as pb
from mandate.ledger.v1 import reports_pb2_grpc as rpc
from mandate.ledger.v1 import rules_pb2, rules_pb2_grpc
from mesh import caller, db, ids, testing
from mesh.client import call
from mesh.db import Database
from mesh.ids import Kind

ROWS = 10_000_000
CHUNK = 250_000
AGENTS, GROUPS, WORKSPACES = 200, 20, 5
DAYS = 90
START = datetime(2026, 2, 1, tzinfo=UTC)
RUNS = 120
LIMIT_MS = 50.0
LIMIT_TOP_MS = 500.0  # who used most has no goal but not to be forgotten
LIMIT_ROWS_SECOND = 5_000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/St_Johns", "Asia/Kathmandu")
INSERT = """
  INSERT INTO usage
  SELECT $1, i, 'r' || i, ARRAY[$1, w.id, g.id, a.id], a.id, 'key_' || a.n, u.name, 'mock', 'model-' || (h >> 8) % 5,
         'p',
         (h >> 3) % 4000, (h >> 5) % 900, (h >> 7) % 300, (h >> 4) % 2000, (h >> 6) % 500, (h >> 2) % 90000, 100000,
         (h % 997 = 0)::int, h % 61 = 0,
         (ARRAY['ok','upstream_error','upstream_cut','client_gone'])[1 + (h % 53 < 3)::int * (1 + h % 3)],
         CASE WHEN h % 53 < 3 THEN 502 ELSE 200 END, 20 + (h >> 3) % 9000, 1 + h % 20, (h % 2) * (10 + h % 700),
         h % 2 = 1, 'reported', 1, 'chat.completions', t.at, t.at
    FROM generate_series($2::bigint, $3::bigint) i
    CROSS JOIN LATERAL (SELECT abs(hashint8extended(i, 1))::bigint AS h) x
    CROSS JOIN LATERAL (SELECT $4::timestamptz + i * $5::interval AS at) t
    JOIN agents a ON a.n = (h >> 12) % $6::int
    JOIN groups g ON g.n = a.n % $7::int
    JOIN spaces w ON w.n = g.n % $8::int
    CROSS JOIN LATERAL (SELECT CASE WHEN h % 10 < 3 THEN 'user-' || a.n || '-' || (h >> 20) % 10 ELSE '' END AS name) u
   ORDER BY i
"""


@dataclass(frozen=True)
class Bench:
    """An organization with much usage, and a desk to ask reports at."""

    issuer: testing.TestIssuer
    database: Database
    owner: asyncpg.Connection
    reports: Any
    rules: Any
    organization: str
    nodes: dict[str, list[str]]

    def person(self) -> AbstractContextManager[None]:
        """Act as somebody whose token is fresh: one lasts a minute."""
        return caller.acting(self.issuer.person(**{self.organization: "owner"}))


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[Bench]:
    """Serve a ledger with one organization."""
    issuer = testing.TestIssuer()
    async with testing.house(folder) as house, db.connect(house.dsn("ledger"), service="ledger") as database:
        await registry.put_keys(database, [(issuer.key_id, issuer.jwk)])
        prices = PriceBook(database)
        ledger = Ledger(database, Commits(database), prices)
        organization = ids.new(Kind.ORGANIZATION)
        counts = {Kind.WORKSPACE: WORKSPACES, Kind.AGENT_GROUP: GROUPS, Kind.AGENT: AGENTS}
        nodes = {str(kind): [ids.new(kind) for _ in range(count)] for kind, count in counts.items()}
        known = [organization, *(node for found in nodes.values() for node in found)]
        await registry.put_nodes(
            database,
            [registry.NodeFact(n, organization, (organization, n)[: 1 + (n != organization)], 1) for n in known],
        )
        owner = await asyncpg.connect(house.owner_dsn.reveal(), server_settings={"search_path": "ledger"})
        async with (
            house.serving("ledger", ledger.registrations(), LedgerKeys(database), ledger.resolve) as address,
            house.channel("ledger", address, as_service="edge") as channel,
        ):
            stubs = rpc.ReportServiceStub(channel), rules_pb2_grpc.RulesServiceStub(channel)
            yield Bench(issuer, database, owner, *stubs, organization, nodes)
        await owner.close()


async def fill(bench: Bench, rows: int) -> None:
    """Write usage, evenly over the days."""
    await bench.owner.execute("SET synchronous_commit = off")
    for table, kind in (("agents", Kind.AGENT), ("groups", Kind.AGENT_GROUP), ("spaces", Kind.WORKSPACE)):
        await bench.owner.execute(f"CREATE TEMP TABLE {table} (n int, id text)")
        await bench.owner.executemany(f"INSERT INTO {table} VALUES ($1, $2)", list(enumerate(bench.nodes[str(kind)])))  # noqa: S608
        await bench.owner.execute(f"ANALYZE {table}")
    step = timedelta(days=DAYS) / rows
    for first in range(1, rows + 1, CHUNK):
        last = min(first + CHUNK - 1, rows)
        await bench.owner.execute(
            INSERT, bench.organization, first, last, START, step, AGENTS, GROUPS, WORKSPACES, timeout=300
        )
    await bench.owner.execute("ANALYZE usage", timeout=300)


async def roll_up(bench: Bench) -> float:
    """Bring all usage into the sums; return rows a second."""
    began, rows = time.monotonic(), 0
    while count := await rollups.roll_up(bench.database, bench.organization):
        rows += count
        if rows % 1_000_000 < rollups.BATCH_ROWS:
            print(f"  {rows:>10,} rows, {rows / (time.monotonic() - began):,.0f} a second", flush=True)
    return rows / (time.monotonic() - began)


async def keep_time(bench: Bench, zone: str) -> None:
    """Change the organization's time zone."""
    request = rules_pb2.UpdateRulesRequest(
        rules=rules_pb2.Rules(organization_id=bench.organization, time_zone=zone), request_id=ids.new(Kind.REQUEST)
    )
    request.update_mask.paths.append("time_zone")
    with bench.person():
        await call(bench.rules.UpdateRules, request)


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


def period(days_max: int) -> dict[str, Any]:
    """Choose a period on quarters of an hour."""
    days = random.randint(max(1, days_max // 2), days_max)  # noqa: S311
    start = START + random.randint(0, (DAYS - days) * 96) * timedelta(minutes=15)  # noqa: S311
    return {"from_time": stamp(start), "to_time": stamp(start + timedelta(days=days))}


def questions(bench: Bench) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return every report as it is measured."""
    reports = bench.reports
    own: dict[str, Any] = {"organization_id": bench.organization}

    def node(kind: str = "") -> dict[str, Any]:
        return own | ({"node_id": random.choice(bench.nodes[kind])} if kind else {})  # noqa: S311

    def trend(interval: Any, days: int, kind: str = "") -> Awaitable[Any]:
        return call(reports.GetTokenTrend, pb.GetTokenTrendRequest(**node(kind), **period(days), interval=interval))

    def service(days: int, kind: str = "") -> Awaitable[Any]:
        request = pb.GetServiceTrendRequest(**node(kind), **period(days), interval=pb.INTERVAL_DAY)
        return call(reports.GetServiceTrend, request)

    def activity(kind: str = "") -> Awaitable[Any]:
        return call(reports.GetActivity, pb.GetActivityRequest(**node(kind), **period(DAYS)))

    def top(share: Any, kind: str = "") -> Awaitable[Any]:
        request = pb.GetTopUsageRequest(**node(kind), **period(DAYS), kind=share, measure=pb.USAGE_MEASURE_CHARGED)
        return call(reports.GetTopUsage, request)

    return {
        "burn rate": lambda: call(reports.GetBurnRate, pb.GetBurnRateRequest(**own)),
        "burn rate, agent": lambda: call(reports.GetBurnRate, pb.GetBurnRateRequest(**node("agt"))),
        "trend, hours of 40 days": lambda: trend(pb.INTERVAL_HOUR, 40),
        "trend, hours, agent": lambda: trend(pb.INTERVAL_HOUR, 40, "agt"),
        "trend, days of 90 days": lambda: trend(pb.INTERVAL_DAY, DAYS),
        "trend, days, agent": lambda: trend(pb.INTERVAL_DAY, DAYS, "agt"),
        "heatmap of 90 days": activity,
        "heatmap, agent": lambda: activity("agt"),
        "service, days of 90 days": lambda: service(DAYS),
        "service, days, group": lambda: service(DAYS, "grp"),
        "summary of 90 days": lambda: call(
            reports.GetUsageSummary, pb.GetUsageSummaryRequest(**node("ws"), **period(DAYS))
        ),
        "top agents": lambda: top(pb.USAGE_SHARE_KIND_AGENT),
        "top agents, workspace": lambda: top(pb.USAGE_SHARE_KIND_AGENT, "ws"),
        "top models": lambda: top(pb.USAGE_SHARE_KIND_MODEL),
        "top users of 2,000": lambda: top(pb.USAGE_SHARE_KIND_END_USER),
    }


async def measure(bench: Bench) -> dict[str, tuple[float, float]]:
    """Return p50 and p95 in ms of each report, each zone as often as the others."""
    taken: dict[str, list[float]] = {}
    for zone in ZONES:
        await keep_time(bench, zone)
        for name, ask in questions(bench).items():
            with bench.person():
                for _ in range(RUNS // len(ZONES)):
                    began = time.perf_counter()
                    await ask()
                    taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return {name: (sorted(ms)[len(ms) // 2], sorted(ms)[len(ms) * 95 // 100]) for name, ms in taken.items()}


async def compare(bench: Bench) -> bool:
    """Return whether a trend, a heatmap and a top list are what a recount of all rows says."""
    whole = {"from_time": stamp(START), "to_time": stamp(START + timedelta(days=DAYS + 1))}
    own: dict[str, Any] = {"organization_id": bench.organization, **whole}
    zone = ZONES[-1]
    await keep_time(bench, zone)
    days = await bench.owner.fetch(
        "SELECT sum(charged_micros)::bigint AS n FROM usage WHERE organization_id = $1 "
        "GROUP BY date_trunc('day', used_at, $2) ORDER BY date_trunc('day', used_at, $2)",
        bench.organization, zone, timeout=600,
    )  # fmt: skip
    hours = await bench.owner.fetch(
        "SELECT extract(isodow FROM used_at AT TIME ZONE $2)::int AS day, "
        "extract(hour FROM used_at AT TIME ZONE $2)::int AS hour, count(*) AS n "
        "FROM usage WHERE organization_id = $1 AND $3 = ANY (path) GROUP BY 1, 2 ORDER BY 1, 2",
        bench.organization, zone, bench.nodes["agt"][0], timeout=600,
    )  # fmt: skip
    agents = await bench.owner.fetch(
        "SELECT agent_id, sum(charged_micros)::bigint AS n FROM usage WHERE organization_id = $1 GROUP BY 1 "
        "ORDER BY 2 DESC, 1 LIMIT 10",
        bench.organization, timeout=600,
    )  # fmt: skip
    with bench.person():
        request = pb.GetTokenTrendRequest(**own, interval=pb.INTERVAL_DAY)
        trend = await call(bench.reports.GetTokenTrend, request)
        request = pb.GetActivityRequest(**own, node_id=bench.nodes["agt"][0])
        activity = await call(bench.reports.GetActivity, request)
        request = pb.GetTopUsageRequest(**own, kind=pb.USAGE_SHARE_KIND_AGENT, measure=pb.USAGE_MEASURE_CHARGED)
        top = await call(bench.reports.GetTopUsage, request)
    return (
        [row["n"] for row in days] == [step.charged_micros for step in trend.steps if step.requests]
        and [tuple(row.values()) for row in hours]
        == [(cell.weekday, cell.hour, cell.requests) for cell in activity.cells if cell.requests]
        and [tuple(row.values()) for row in agents] == [(share.name, share.charged_micros) for share in top.shares]
    )


async def main(rows: int) -> int:
    """Print the figures; 1 when one is beyond its limit, or a report is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as bench:
            began = time.monotonic()
            await fill(bench, rows)
            print(f"{rows:,} rows of usage were written in {time.monotonic() - began:.0f} s", flush=True)
            speed = await roll_up(bench)
            sizes = await bench.owner.fetch(
                "SELECT t, pg_total_relation_size(t::regclass) / 1048576 AS mb "
                "FROM unnest(ARRAY['usage', 'usage_sums', 'usage_activity', 'usage_shares']) t"
            )
            same = await compare(bench)
            figures = await measure(bench)
    for name, (middle, most) in figures.items():
        print(f"{name:<26} p50 {middle:6.1f} ms   p95 {most:6.1f} ms")
    print(f"roll-up {speed:,.0f} rows a second (limit {LIMIT_ROWS_SECOND:,})")
    print(", ".join(f"{row['t']} {row['mb']:,} MB" for row in sizes))
    print("reports equal a recount" if same else "REPORTS DIFFER FROM A RECOUNT")
    slow = [
        name for name, (_, most) in figures.items() if most > (LIMIT_TOP_MS if name.startswith("top") else LIMIT_MS)
    ]
    print(f"slower at p95 than {LIMIT_MS:.0f} ms, top lists than {LIMIT_TOP_MS:.0f} ms: {', '.join(slow) or 'none'}")
    return 0 if same and not slow and speed >= LIMIT_ROWS_SECOND else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)))
