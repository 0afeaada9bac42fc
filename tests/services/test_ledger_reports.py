from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc import rollups as loop
from ledger_svc.latencies import CLASSES, ENDS_MS, quantile_ms
from ledger_svc.store import registry, reports, rollups
from mandate.ledger.v1 import reports_pb2 as pb
from mandate.ledger.v1 import reports_pb2_grpc as rpc
from mandate.ledger.v1 import rules_pb2, rules_pb2_grpc
from mesh import caller, ids
from mesh.client import call
from mesh.errors import InvalidArgument, NotFound, Unavailable
from mesh.ids import Kind
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services import usage_recount as recount
from tests.services.ledger_running import TOKEN_MICROS, owner, tenant
from tests.services.usage_recount import Used, day

START, END = day("2026-03-25T00:00"), day("2026-04-08T00:00")  # clocks change in Berlin, Lord Howe and not in Kolkata
KINDS: dict[Any, Callable[[str], Callable[[Used], list[str]]]] = {
    pb.USAGE_SHARE_KIND_WORKSPACE: lambda node: recount.below("ws", node),
    pb.USAGE_SHARE_KIND_AGENT_GROUP: lambda node: recount.below("grp", node),
    pb.USAGE_SHARE_KIND_AGENT: lambda node: recount.below("agt", node),
    pb.USAGE_SHARE_KIND_MODEL: lambda _: lambda row: [f"{row.provider}/{row.model}"],
    pb.USAGE_SHARE_KIND_END_USER: lambda _: lambda row: [row.end_user] if row.end_user else [],
    pb.USAGE_SHARE_KIND_API_KEY: lambda _: lambda row: [row.api_key_id],
}
MEASURES: dict[Any, int] = {
    pb.USAGE_MEASURE_REQUESTS: 0,
    pb.USAGE_MEASURE_TOKENS: 1,
    pb.USAGE_MEASURE_CHARGED: 2,
}
SHOWN: dict[Any, str] = {pb.INTERVAL_HOUR: "%m-%d %H %z", pb.INTERVAL_DAY: "%m-%d", pb.INTERVAL_MONTH: "%m"}


@dataclass(frozen=True)
class Desk:
    """An organization with a hierarchy whose agents move about, and where its reports are asked for."""

    ledger: RunningLedger
    paths: list[tuple[str, ...]]
    stub: Any
    rules: Any

    @property
    def organization(self) -> str:
        return self.paths[0][0]

    async def keep_time(self, zone: str) -> None:
        rules = rules_pb2.Rules(organization_id=self.organization, time_zone=zone)
        request = rules_pb2.UpdateRulesRequest(rules=rules, request_id=ids.new(Kind.REQUEST))
        request.update_mask.paths.append("time_zone")
        await call(self.rules.UpdateRules, request)

    async def use(self, rows: list[Used]) -> None:
        async with owner(self.ledger.house) as connection:
            await recount.write(connection, rows)

    async def roll_up(self, rows: int = 100_000) -> int:
        return await rollups.roll_up(self.ledger.database, self.organization, rows)

    def of(self, request: Any, node: str = "", period: tuple[datetime, datetime] = (START, END), **more: Any) -> Any:
        times = {"from_time": stamp(period[0]), "to_time": stamp(period[1])}
        return request(organization_id=self.organization, node_id=node, **times, **more)


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


@asynccontextmanager
async def desk(ledger: RunningLedger, issuer: TestIssuer, role: str = "viewer") -> AsyncGenerator[Desk]:
    org, *spaces = ids.new(Kind.ORGANIZATION), ids.new(Kind.WORKSPACE), ids.new(Kind.WORKSPACE)
    groups = [ids.new(Kind.AGENT_GROUP) for _ in range(3)]
    agents = [ids.new(Kind.AGENT) for _ in range(4)]
    paths = [(org, spaces[number % 2], groups[number % 3], agent) for number, agent in enumerate(agents)]
    paths.append((org, spaces[1], groups[1], agents[0]))  # the first agent moved
    facts = {node: path[: depth + 1] for path in paths for depth, node in enumerate(path)}
    await registry.put_nodes(ledger.database, [registry.NodeFact(node, org, path, 1) for node, path in facts.items()])
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        desk = Desk(ledger, paths, rpc.ReportServiceStub(channel), rules_pb2_grpc.RulesServiceStub(channel))
        with caller.acting(issuer.person(**{org: role})):
            yield desk


async def check_summary(desk: Desk, rows: list[Used], node: str, period: tuple[datetime, datetime]) -> None:
    found = await call(desk.stub.GetUsageSummary, desk.of(pb.GetUsageSummaryRequest, node, period))
    rows = recount.within(rows, node, *period)
    assert found.requests == len(rows)
    for name in (*reports.TREND[1:], "breach_micros"):
        assert getattr(found, name) == sum(getattr(row, name) for row in rows), name
    assert found.total_tokens == sum(row.tokens for row in rows)
    assert found.estimated_requests == sum(row.estimated for row in rows)
    check_service(found, rows)


def check_service(found: Any, rows: list[Used]) -> None:
    def mean(values: list[int]) -> int:
        return (2 * sum(values) + len(values)) // (2 * len(values)) if values else 0

    outcomes = [row.outcome for row in rows]
    failures, latencies = found.failures, found.latencies
    assert found.requests == len(rows)
    assert failures.upstream_error_requests == outcomes.count("upstream_error")
    assert failures.upstream_cut_requests == outcomes.count("upstream_cut")
    assert failures.client_gone_requests == outcomes.count("client_gone")
    assert failures.status_4xx_requests == sum(row.http_status == 499 for row in rows)
    assert failures.status_5xx_requests == sum(row.http_status == 502 for row in rows)
    failed = failures.upstream_error_requests + failures.upstream_cut_requests
    assert failures.error_ppm == (1_000_000 * failed // len(rows) if rows else 0)
    assert latencies.mean_ms == mean([row.latency_ms for row in rows])
    assert latencies.overhead_mean_ms == mean([row.overhead_ms for row in rows])
    assert latencies.first_token_mean_ms == mean([row.first_token_ms for row in rows if row.first_token_ms])
    counts = [0] * CLASSES
    for row in rows:
        counts[sum(row.latency_ms >= end for end in ENDS_MS)] += 1
    assert (latencies.p50_ms, latencies.p95_ms) == (quantile_ms(counts, 50), quantile_ms(counts, 95))


async def check_trends(desk: Desk, rows: list[Used], zone: str, node: str, period: tuple[datetime, datetime]) -> None:
    rows = recount.within(rows, node, *period)
    for interval, shown in SHOWN.items():
        request = desk.of(pb.GetTokenTrendRequest, node, period, interval=interval)
        trend = await call(desk.stub.GetTokenTrend, request)
        begun = [recount.day(step.start_time.ToDatetime().isoformat()) for step in trend.steps]
        parts = recount.series(rows, begun)
        for step, part in zip(trend.steps, parts, strict=True):
            assert (step.requests, step.total_tokens) == (len(part), sum(row.tokens for row in part))
            for name in reports.TREND[1:]:
                assert getattr(step, name) == sum(getattr(row, name) for row in part), name
            assert len(recount.labels(part, zone, shown)) <= 1  # all of a step was at one hour, day or month there
        names = [label for part in parts for label in recount.labels(part, zone, shown)]
        assert len(names) == len(set(names))  # and all of one hour, day or month is in one step
        service = await call(
            desk.stub.GetServiceTrend, desk.of(pb.GetServiceTrendRequest, node, period, interval=interval)
        )
        for step, part in zip(service.steps, parts, strict=True):
            check_service(step, part)


async def check_activity(desk: Desk, rows: list[Used], zone: str, node: str, period: tuple[datetime, datetime]) -> None:
    found = await call(desk.stub.GetActivity, desk.of(pb.GetActivityRequest, node, period))
    assert [(cell.weekday, cell.hour) for cell in found.cells] == [(d, h) for d in range(1, 8) for h in range(24)]
    assert {
        (cell.weekday, cell.hour): (cell.requests, cell.total_tokens, cell.charged_micros)
        for cell in found.cells
        if cell.requests
    } == recount.activity(recount.within(rows, node, *period), zone)


async def check_top(desk: Desk, rows: list[Used], node: str, period: tuple[datetime, datetime]) -> None:
    for kind, names in KINDS.items():
        sums = recount.ranking(recount.within(rows, node, *period), names(node))
        for measure, place in MEASURES.items():
            request = desk.of(pb.GetTopUsageRequest, node, period, kind=kind, measure=measure, size=3)
            found = await call(desk.stub.GetTopUsage, request)
            expected = sorted(sums.items(), key=lambda item: (-item[1][place], item[0]))[:3]
            assert [
                (share.name, (share.requests, share.total_tokens, share.charged_micros)) for share in found.shares
            ] == expected


async def check(desk: Desk, rows: list[Used], zone: str, rng: random.Random) -> None:
    """Check every report against a recount, for a node and a period."""
    start = START + rng.randrange(5 * 96) * timedelta(minutes=15)
    period = rng.choice([(START, END), (start, start + rng.randrange(1, 9 * 96) * timedelta(minutes=15))])
    node = rng.choice(rng.choice(desk.paths))
    await check_summary(desk, rows, node, period)
    await check_trends(desk, rows, zone, node, period)
    await check_activity(desk, rows, zone, node, period)
    await check_top(desk, rows, node, period)


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
)
async def test_reports_equal_a_recount_before_during_and_after_the_roll_up(
    ledger: RunningLedger, issuer: TestIssuer, zone: str
) -> None:
    rng = recount.seeded(zone)
    async with desk(ledger, issuer, "owner") as made:
        await made.keep_time(zone)
        rows = recount.made_up(rng, made.paths, recount.moments(rng, START, END, 400))
        await made.use(rows)
        await check(made, rows, zone, rng)
        while await made.roll_up(130):
            await check(made, rows, zone, rng)
        more = recount.made_up(rng, made.paths, [END - timedelta(seconds=1)] * 9, len(rows))
        await made.use(more)
        await check(made, rows + more, zone, rng)
        await rollups.rebuild(ledger.database, made.organization)
        await check(made, rows + more, zone, rng)
        await made.roll_up()
        await check(made, rows + more, zone, rng)


async def test_processes_that_roll_up_at_once_count_each_row_once(ledger: RunningLedger, issuer: TestIssuer) -> None:
    rng = recount.seeded(1)
    async with desk(ledger, issuer, "owner") as made:
        rows = recount.made_up(rng, made.paths, recount.moments(rng, START, END, 300))
        await made.use(rows)

        async def worker() -> int:
            return sum([await made.roll_up(7) for _ in range(40)])

        assert sum(await asyncio.gather(*(worker() for _ in range(4)))) <= 300
        while await made.roll_up(7):
            pass
        await check(made, rows, "UTC", rng)
        await check(made, rows, "UTC", rng)


async def test_a_roll_up_that_fails_leaves_sums_and_cursor_as_they_were(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    rng = recount.seeded(2)
    async with desk(ledger, issuer, "owner") as made:
        rows = recount.made_up(rng, made.paths, recount.moments(rng, START, END, 60))
        await made.use(rows)
        assert await made.roll_up(20) == 20
        async with owner(ledger.house) as connection:
            await connection.execute("ALTER TABLE usage_shares ADD CONSTRAINT broken CHECK (requests < 0) NOT VALID")
            try:
                with pytest.raises(asyncpg.CheckViolationError):
                    await made.roll_up(20)
            finally:
                await connection.execute("ALTER TABLE usage_shares DROP CONSTRAINT broken")
        await check(made, rows, "UTC", rng)
        assert await made.roll_up() == 40
        await check(made, rows, "UTC", rng)


async def test_an_organization_that_another_process_rolls_up_is_left_to_it(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    rng = recount.seeded(3)
    async with desk(ledger, issuer, "owner") as made:
        await made.use(recount.made_up(rng, made.paths, recount.moments(rng, START, END, 5)))
        assert await made.roll_up(1) == 1
        async with owner(ledger.house) as connection, connection.transaction():
            await connection.execute(
                "SELECT 1 FROM report_cursors WHERE organization_id = $1 FOR UPDATE", made.organization
            )
            assert await made.roll_up() == 0
        assert await made.roll_up() == 4


async def test_the_loop_finds_every_organization_with_new_usage(ledger: RunningLedger, issuer: TestIssuer) -> None:
    rng = recount.seeded(4)
    async with desk(ledger, issuer) as one, desk(ledger, issuer) as other:
        for made in (one, other):
            await made.use(recount.made_up(rng, made.paths, recount.moments(rng, START, END, 5)))
        before = min(one.organization, other.organization)[:-1]  # what others made may fill a page by itself
        found = await rollups.behind(ledger.database, before)
        assert {one.organization, other.organization} <= set(found.behind)
        assert not await loop.catch_up(ledger.database)
        assert (await rollups.behind(ledger.database, before)).behind == []


@pytest.mark.parametrize(("rows", "failed", "then"), [(20_000, True, 5_000), (600, True, 500), (500, False, 1_000)])
def test_batches_shrink_when_they_fail_and_grow_again(rows: int, failed: bool, then: int) -> None:  # noqa: FBT001
    assert loop.paced(rows, failed=failed) == then


async def test_what_a_rebuild_leaves_behind_is_swept_away(ledger: RunningLedger, issuer: TestIssuer) -> None:
    rng = recount.seeded(5)
    async with desk(ledger, issuer, "owner") as made:
        rows = recount.made_up(rng, made.paths, recount.moments(rng, START, END, 50))
        await made.use(rows)
        await made.roll_up()
        stale = await ledger.database.rows(
            "SELECT id FROM report_subjects WHERE organization_id = $1", made.organization
        )
        await rollups.rebuild(ledger.database, made.organization)
        await made.roll_up()
        while await rollups.sweep(ledger.database):
            pass
        derived = {
            "report_subjects": "id",
            **dict.fromkeys(("usage_sums", "usage_activity", "usage_shares"), "subject_id"),
        }
        for table, column in derived.items():
            left = await ledger.database.value(
                f"SELECT count(*) FROM {table} WHERE {column} = ANY ($1)",  # noqa: S608
                [row["id"] for row in stale],
            )
            assert left == 0
        await check(made, rows, "UTC", rng)


async def test_the_burn_rate_is_exact_to_the_last_charge(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        stub = rpc.ReportServiceStub(channel)
        with caller.acting(issuer.person(**{spender.organization: "viewer"})):
            request = pb.GetBurnRateRequest(organization_id=spender.organization)
            idle = await call(stub.GetBurnRate, request)
            assert (idle.last_day.hourly_micros, idle.last_day.HasField("run_out_time")) == (0, False)
            for number in range(3):
                await spender.place(f"c{number}", 10)
                await spender.settle(f"c{number}", 10)
                await rollups.roll_up(ledger.database, spender.organization)
            await spender.place("late", 10)
            await spender.settle("late", 10)
            found = await call(stub.GetBurnRate, request)
            request.node_id = spender.path[-1]
            agent = await call(stub.GetBurnRate, request)
    now = found.time.ToDatetime()
    for window, hours in ((found.last_day, 24), (found.last_week, 168)):
        elapsed = now - window.from_time.ToDatetime()
        assert timedelta(0) <= elapsed - timedelta(hours=hours) < timedelta(minutes=15)
        assert window.charged_micros == 40 * TOKEN_MICROS
        assert abs(window.hourly_micros - 40 * TOKEN_MICROS / (elapsed / timedelta(hours=1))) <= 1
        left = window.run_out_time.ToDatetime() - now
        assert abs(left - elapsed * 60 / 40) < timedelta(milliseconds=1)
    assert found.available_micros == 60 * TOKEN_MICROS
    assert (agent.last_day.charged_micros, agent.last_day.HasField("run_out_time")) == (40 * TOKEN_MICROS, False)


async def test_reports_say_so_while_too_much_is_not_in_the_sums(ledger: RunningLedger, issuer: TestIssuer) -> None:
    rng = recount.seeded(6)
    async with desk(ledger, issuer) as made:
        await made.use(recount.made_up(rng, made.paths, recount.moments(rng, START, END, 5)))
        with pytest.raises(Unavailable) as refused:
            async with reports.view(ledger.database, made.organization, made.organization, tail_max=4):
                pass
    assert refused.value.reason == "REPORTS_BEHIND"


BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("GetUsageSummary", pb.GetUsageSummaryRequest, {"to_time": Timestamp(seconds=10**12)}, "to_time"),
    ("GetUsageSummary", pb.GetUsageSummaryRequest, {"from_time": Timestamp()}, "from_time"),
    ("GetUsageSummary", pb.GetUsageSummaryRequest, {"from_time": stamp(END)}, "to_time"),
    ("GetActivity", pb.GetActivityRequest, {"from_time": stamp(START + timedelta(minutes=1))}, "from_time"),
    ("GetTokenTrend", pb.GetTokenTrendRequest, {}, "interval"),
    ("GetTokenTrend", pb.GetTokenTrendRequest,
     {"interval": pb.INTERVAL_HOUR, "to_time": stamp(START + timedelta(days=42))}, "to_time"),
    ("GetServiceTrend", pb.GetServiceTrendRequest, {"interval": 9}, "interval"),
    ("GetTopUsage", pb.GetTopUsageRequest, {"measure": pb.USAGE_MEASURE_TOKENS}, "kind"),
    ("GetTopUsage", pb.GetTopUsageRequest, {"kind": pb.USAGE_SHARE_KIND_AGENT}, "measure"),
    ("GetTopUsage", pb.GetTopUsageRequest,
     {"kind": pb.USAGE_SHARE_KIND_AGENT, "measure": pb.USAGE_MEASURE_TOKENS, "size": 101}, "size"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind", "values", "field"), BAD)
async def test_a_bad_field_of_a_report_is_named(
    ledger: RunningLedger, issuer: TestIssuer, method: str, kind: Any, values: dict[str, Any], field: str
) -> None:
    async with desk(ledger, issuer) as made:
        times = {"from_time": stamp(START), "to_time": stamp(END)}
        with pytest.raises(InvalidArgument) as refused:
            await call(getattr(made.stub, method), kind(organization_id=made.organization, **(times | values)))
    assert refused.value.details["field"] == field


async def test_a_report_is_on_nodes_of_the_organization_and_for_its_people(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as other, desk(ledger, issuer) as made:
        for node in (other.paths[0][-1], other.organization, ids.new(Kind.AGENT), ids.new(Kind.BUDGET), "a\0"):
            with pytest.raises(NotFound) as refused:
                await call(made.stub.GetActivity, made.of(pb.GetActivityRequest, node))
            assert refused.value.details["field"] == "node_id"
        with pytest.raises(NotFound) as refused:  # a stranger is not told that it exists
            await call(made.stub.GetBurnRate, pb.GetBurnRateRequest(organization_id=other.organization))
        assert refused.value.details["field"] == "organization_id"
