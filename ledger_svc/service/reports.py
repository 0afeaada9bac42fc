"""Usage summed up: summaries, burn rates, trends, who used most, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc import burn, periods, wire
from ledger_svc.latencies import mean, quantile_ms
from ledger_svc.periods import Interval
from ledger_svc.store import reports
from ledger_svc.store.rollups import SUMS
from mandate.ledger.v1 import reports_pb2 as pb
from mandate.ledger.v1 import reports_pb2_grpc as rpc
from mesh import ids
from mesh.db import Database, Row
from mesh.errors import NotFound, invalid

INTERVALS = {
    pb.INTERVAL_HOUR: Interval.HOUR,
    pb.INTERVAL_DAY: Interval.DAY,
    pb.INTERVAL_MONTH: Interval.MONTH,
}
KINDS = {
    pb.USAGE_SHARE_KIND_WORKSPACE: "workspace",
    pb.USAGE_SHARE_KIND_AGENT_GROUP: "agent_group",
    pb.USAGE_SHARE_KIND_AGENT: "agent",
    pb.USAGE_SHARE_KIND_MODEL: "model",
    pb.USAGE_SHARE_KIND_END_USER: "end_user",
    pb.USAGE_SHARE_KIND_API_KEY: "api_key",
}
MEASURES = {
    pb.USAGE_MEASURE_CHARGED: "charged_micros",
    pb.USAGE_MEASURE_REQUESTS: "requests",
    pb.USAGE_MEASURE_TOKENS: "tokens",
}
NODES = {ids.Kind.ORGANIZATION, ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT}
TOP_DEFAULT, TOP_MAX = 10, 100
TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
THURSDAY = 3  # days after Monday: where hours of the week are counted from
Context = grpc.aio.ServicerContext[Any, Any]
NOTHING: Mapping[str, int] = dict.fromkeys(SUMS, 0)


class ReportServicer(rpc.ReportServiceServicer):
    """Implements mandate.ledger.v1.ReportService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetUsageSummary(self, request: pb.GetUsageSummaryRequest, context: Context) -> pb.UsageSummary:
        bounds = _period(request)
        async with reports.view(self._db, request.organization_id, _node(request)) as view:
            rows = await reports.summed(view, periods.pieces(bounds), SUMS, latencies=True)
        sums: Any = rows[0] if rows else NOTHING
        return pb.UsageSummary(
            requests=sums["requests"],
            **_tokens(sums),
            charged_micros=sums["charged_micros"],
            breach_micros=sums["breach_micros"],
            estimated_requests=sums["estimated"],
            failures=_failures(sums),
            latencies=_latencies(rows[0] if rows else None),
            time_zone=view.time_zone,
        )

    async def GetBurnRate(self, request: pb.GetBurnRateRequest, context: Context) -> pb.BurnRate:
        node = _node(request)
        async with reports.view(self._db, request.organization_id, node) as view:
            now = periods.floor(view.now, periods.QUARTER)
            bounds = [now - 7 * periods.DAY, now - periods.DAY, now + periods.QUARTER]
            rows = await reports.summed(view, periods.pieces(bounds), ["charged_micros"])
            available = await reports.available_micros(view)
        spent = {row["bucket"]: row["charged_micros"] for row in rows}
        day, before = spent.get(1, 0), spent.get(0, 0)
        left = available if node == request.organization_id else None
        return pb.BurnRate(
            last_day=_window(bounds[1], view.now, day, left),
            last_week=_window(bounds[0], view.now, day + before, left),
            available_micros=available,
            time=wire.stamp(view.now),
        )

    async def GetTopUsage(self, request: pb.GetTopUsageRequest, context: Context) -> pb.TopUsage:
        bounds = _period(request)
        kind, measure = KINDS.get(request.kind), MEASURES.get(request.measure)
        if kind is None:
            raise invalid("kind", "must be WORKSPACE, AGENT_GROUP, AGENT, MODEL, END_USER or API_KEY")
        if measure is None:
            raise invalid("measure", "must be CHARGED, REQUESTS or TOKENS")
        if not 0 <= request.size <= TOP_MAX:
            raise invalid("size", f"must be 0 to {TOP_MAX}")
        async with reports.view(self._db, request.organization_id, _node(request)) as view:
            rows = await reports.top(view, periods.pieces(bounds), kind, measure, request.size or TOP_DEFAULT)
        shares = [
            pb.UsageShare(
                name=row["name"],
                requests=row["requests"],
                total_tokens=row["tokens"],
                charged_micros=row["charged_micros"],
            )
            for row in rows
        ]
        return pb.TopUsage(shares=shares, time_zone=view.time_zone)

    async def GetTokenTrend(self, request: pb.GetTokenTrendRequest, context: Context) -> pb.TokenTrend:
        start, end = _period(request)
        async with reports.view(self._db, request.organization_id, _node(request)) as view:
            bounds = _steps(start, end, request.interval, view.time_zone)
            rows = await reports.summed(view, periods.pieces(bounds), reports.TREND)
        found = {row["bucket"]: row for row in rows}
        steps = [
            pb.TokenStep(start_time=wire.stamp(at), **_used(found.get(number))) for number, at in enumerate(bounds[:-1])
        ]
        return pb.TokenTrend(steps=steps, time_zone=view.time_zone)

    async def GetServiceTrend(self, request: pb.GetServiceTrendRequest, context: Context) -> pb.ServiceTrend:
        start, end = _period(request)
        async with reports.view(self._db, request.organization_id, _node(request)) as view:
            bounds = _steps(start, end, request.interval, view.time_zone)
            rows = await reports.summed(view, periods.pieces(bounds), reports.SERVICE, latencies=True)
        found = {row["bucket"]: row for row in rows}
        steps = [_service_step(at, found.get(number)) for number, at in enumerate(bounds[:-1])]
        return pb.ServiceTrend(steps=steps, time_zone=view.time_zone)

    async def GetActivity(self, request: pb.GetActivityRequest, context: Context) -> pb.Activity:
        start, end = _period(request)
        async with reports.view(self._db, request.organization_id, _node(request)) as view:
            pieces, offsets = periods.local_hours(start, end, ZoneInfo(view.time_zone))
            rows = await reports.active(view, pieces, offsets)
        cells = [pb.ActivityCell(weekday=day + 1, hour=hour) for day in range(7) for hour in range(24)]
        for row in rows:
            cell = cells[(row["hour"] + 24 * THURSDAY) % periods.WEEK_HOURS]
            cell.requests, cell.total_tokens = row["requests"], row["tokens"]
            cell.charged_micros = row["charged_micros"]
        return pb.Activity(cells=cells, time_zone=view.time_zone)


def _node(request: Any) -> str:
    node: str = request.node_id or request.organization_id
    if ids.kind_of(node) not in NODES:
        raise NotFound("NOT_FOUND", f"no {node!r} in this organization"[:200], field="node_id")
    return node


def _period(request: Any) -> list[datetime]:
    start, end = _time(request, "from_time"), _time(request, "to_time")
    bad = periods.check(start, end)
    if bad is not None:
        raise invalid(bad.field, bad.problem)
    return [start, end]


def _time(request: Any, field: str) -> datetime:
    stamp: Timestamp = getattr(request, field)
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "is no time") from None


def _steps(start: datetime, end: datetime, interval: Any, time_zone: str) -> list[datetime]:
    found = INTERVALS.get(interval)
    if found is None:
        raise invalid("interval", "must be HOUR, DAY or MONTH")
    bounds = periods.steps(start, end, found, ZoneInfo(time_zone))
    if len(bounds) > periods.STEPS_MAX + 1:
        raise invalid("to_time", f"a trend has at most {periods.STEPS_MAX} steps")
    return bounds


def _window(start: datetime, now: datetime, charged_micros: int, available_micros: int | None) -> pb.BurnWindow:
    elapsed = now - start
    window = pb.BurnWindow(
        from_time=wire.stamp(start),
        charged_micros=charged_micros,
        hourly_micros=burn.hourly_micros(charged_micros, elapsed),
    )
    if available_micros is not None:
        empty = burn.run_out(available_micros, charged_micros, elapsed, now)
        if empty is not None:
            window.run_out_time.CopyFrom(wire.stamp(empty))
    return window


def _used(row: Row | None) -> dict[str, int]:
    sums: Any = row or NOTHING
    return {"requests": sums["requests"], **_tokens(sums), "charged_micros": sums["charged_micros"]}


def _tokens(sums: Any) -> dict[str, int]:
    return {**{name: sums[name] for name in TOKENS}, "total_tokens": sum(sums[name] for name in TOKENS)}


def _service_step(at: datetime, row: Row | None) -> pb.ServiceStep:
    sums: Any = row or NOTHING
    return pb.ServiceStep(
        start_time=wire.stamp(at), requests=sums["requests"], failures=_failures(sums), latencies=_latencies(row)
    )


def _failures(sums: Any) -> pb.Failures:
    failed = sums["upstream_errors"] + sums["upstream_cuts"]
    return pb.Failures(
        upstream_error_requests=sums["upstream_errors"],
        upstream_cut_requests=sums["upstream_cuts"],
        client_gone_requests=sums["client_gone"],
        status_4xx_requests=sums["status_4xx"],
        status_5xx_requests=sums["status_5xx"],
        error_ppm=failed * 1_000_000 // sums["requests"] if failed else 0,
    )


def _latencies(row: Row | None) -> pb.Latencies:
    if row is None:
        return pb.Latencies()
    counts: Sequence[int] = row["latencies"]
    return pb.Latencies(
        mean_ms=mean(row["latency_ms"], row["requests"]),
        p50_ms=quantile_ms(counts, 50),
        p95_ms=quantile_ms(counts, 95),
        overhead_mean_ms=mean(row["overhead_ms"], row["requests"]),
        first_token_mean_ms=mean(row["first_token_ms"], row["streamed"]),
    )
