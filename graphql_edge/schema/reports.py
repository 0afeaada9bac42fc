"""Usage summed up for a node and everything below it, in the organization's time zone."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from graphql_edge.schema.errors import invalid
from graphql_edge.schema.fields import Info, field
from graphql_edge.schema.pages import size_of
from graphql_edge.schema.scalars import Int64, Micros, optional_time, stamp_of, time_of
from mandate.ledger.v1 import reports_pb2 as pb

STEPS_DEFAULT, STEPS_MAX = 100, 1_000
TOP_DEFAULT = 10


@strawberry.enum
class ReportInterval(Enum):
    """The length of a trend's steps, by the clocks of the organization's time zone."""

    HOUR = pb.INTERVAL_HOUR
    DAY = pb.INTERVAL_DAY
    MONTH = pb.INTERVAL_MONTH


@strawberry.enum
class UsageShareKind(Enum):
    """Who usage is told apart by; requests that said no end user are left out of END_USER."""

    WORKSPACE = pb.USAGE_SHARE_KIND_WORKSPACE
    AGENT_GROUP = pb.USAGE_SHARE_KIND_AGENT_GROUP
    AGENT = pb.USAGE_SHARE_KIND_AGENT
    MODEL = pb.USAGE_SHARE_KIND_MODEL
    END_USER = pb.USAGE_SHARE_KIND_END_USER
    API_KEY = pb.USAGE_SHARE_KIND_API_KEY


@strawberry.enum
class UsageMeasure(Enum):
    """What usage is ordered by."""

    CHARGED = pb.USAGE_MEASURE_CHARGED
    REQUESTS = pb.USAGE_MEASURE_REQUESTS
    TOKENS = pb.USAGE_MEASURE_TOKENS


@strawberry.type
class Latencies:
    """How long requests took; quantiles are estimates within classes at most half as wide again as they begin."""

    mean_ms: Int64
    p50_ms: Int64
    p95_ms: Int64
    overhead_mean_ms: Int64
    first_token_mean_ms: Int64


@strawberry.type
class Failures:
    """How requests went wrong; `errorPpm` is how many of a million failed at the provider."""

    upstream_error_requests: Int64
    upstream_cut_requests: Int64
    client_gone_requests: Int64
    status_4xx_requests: Int64 = strawberry.field(name="status4xxRequests")
    status_5xx_requests: Int64 = strawberry.field(name="status5xxRequests")
    error_ppm: int


@strawberry.type
class UsageSummary:
    """The sum of a period; `totalTokens` is of all five classes."""

    requests: Int64
    input_tokens: Int64
    cached_input_tokens: Int64
    cache_write_tokens: Int64
    output_tokens: Int64
    reasoning_tokens: Int64
    total_tokens: Int64
    charged_micros: Micros
    breach_micros: Micros
    estimated_requests: Int64
    failures: Failures
    latencies: Latencies
    time_zone: str


@strawberry.type
class BurnWindow:
    """The spending since `fromTime`; `runOutTime` is when the wallet is empty at this rate, if ever."""

    from_time: datetime
    charged_micros: Micros
    hourly_micros: Micros
    run_out_time: datetime | None


@strawberry.type
class BurnRate:
    """How fast credits were spent up to now, in the last 24 hours and 7 days."""

    last_day: BurnWindow
    last_week: BurnWindow
    available_micros: Micros
    time: datetime


@strawberry.type
class UsageShare:
    """What one of a kind used: `name` is its id, provider/model or end user."""

    name: str
    requests: Int64
    total_tokens: Int64
    charged_micros: Micros


@strawberry.type
class TokenStep:
    """What was used from `startTime` until the next step."""

    start_time: datetime
    requests: Int64
    input_tokens: Int64
    cached_input_tokens: Int64
    cache_write_tokens: Int64
    output_tokens: Int64
    reasoning_tokens: Int64
    total_tokens: Int64
    charged_micros: Micros


@strawberry.type
class ServiceStep:
    """How requests went from `startTime` until the next step."""

    start_time: datetime
    requests: Int64
    failures: Failures
    latencies: Latencies


@strawberry.type
class ActivityCell:
    """One hour of one weekday; 1 is Monday."""

    weekday: int
    hour: int
    requests: Int64
    total_tokens: Int64
    charged_micros: Micros


@strawberry.type
class UsageReports:
    """Reports on a node and everything below it; periods are on quarters of an hour and have at most 400 days."""

    organization_id: strawberry.ID
    node_id: strawberry.ID

    @field
    async def summary(self, info: Info, from_time: datetime, to_time: datetime) -> UsageSummary | None:
        """Sum a period up; `toTime` is exclusive."""
        request = pb.GetUsageSummaryRequest(
            organization_id=self.organization_id,
            node_id=self.node_id,
            from_time=stamp_of("fromTime", from_time),
            to_time=stamp_of("toTime", to_time),
        )
        return summary_of(await info.context.call(info.context.stubs.reports.GetUsageSummary, request))

    @field
    async def burn_rate(self, info: Info) -> BurnRate | None:
        """Tell how fast credits are spent, and when the wallet will be empty."""
        request = pb.GetBurnRateRequest(organization_id=self.organization_id, node_id=self.node_id)
        answer = await info.context.call(info.context.stubs.reports.GetBurnRate, request)
        return BurnRate(
            last_day=window_of(answer.last_day),
            last_week=window_of(answer.last_week),
            available_micros=Micros(answer.available_micros),
            time=time_of(answer.time),
        )

    @field
    async def top(
        self,
        info: Info,
        kind: UsageShareKind,
        from_time: datetime,
        to_time: datetime,
        measure: UsageMeasure = UsageMeasure.CHARGED,
        first: int = TOP_DEFAULT,
    ) -> list[UsageShare] | None:
        """Tell who used most in a period, most first, 1 to 100 of them."""
        request = pb.GetTopUsageRequest(
            organization_id=self.organization_id,
            node_id=self.node_id,
            from_time=stamp_of("fromTime", from_time),
            to_time=stamp_of("toTime", to_time),
            kind=pb.UsageShareKind.ValueType(kind.value),
            measure=pb.UsageMeasure.ValueType(measure.value),
            size=size_of(first),
        )
        answer = await info.context.call(info.context.stubs.reports.GetTopUsage, request)
        return [
            UsageShare(
                name=share.name,
                requests=Int64(share.requests),
                total_tokens=Int64(share.total_tokens),
                charged_micros=Micros(share.charged_micros),
            )
            for share in answer.shares
        ]

    @field
    async def token_trend(
        self, info: Info, interval: ReportInterval, from_time: datetime, to_time: datetime, first: int = STEPS_DEFAULT
    ) -> list[TokenStep] | None:
        """Sum tokens and credits up for each step of a period; a period of more than `first` steps is refused."""
        request = pb.GetTokenTrendRequest(
            organization_id=self.organization_id,
            node_id=self.node_id,
            from_time=stamp_of("fromTime", from_time),
            to_time=stamp_of("toTime", to_time),
            interval=pb.Interval.ValueType(interval.value),
        )
        _check_first(first)
        answer = await info.context.call(info.context.stubs.reports.GetTokenTrend, request)
        _check_steps(len(answer.steps), first)
        return [token_step_of(step) for step in answer.steps]

    @field
    async def service_trend(
        self, info: Info, interval: ReportInterval, from_time: datetime, to_time: datetime, first: int = STEPS_DEFAULT
    ) -> list[ServiceStep] | None:
        """Tell latencies and errors for each step of a period; a period of more than `first` steps is refused."""
        request = pb.GetServiceTrendRequest(
            organization_id=self.organization_id,
            node_id=self.node_id,
            from_time=stamp_of("fromTime", from_time),
            to_time=stamp_of("toTime", to_time),
            interval=pb.Interval.ValueType(interval.value),
        )
        _check_first(first)
        answer = await info.context.call(info.context.stubs.reports.GetServiceTrend, request)
        _check_steps(len(answer.steps), first)
        return [
            ServiceStep(
                start_time=time_of(step.start_time),
                requests=Int64(step.requests),
                failures=failures_of(step.failures),
                latencies=latencies_of(step.latencies),
            )
            for step in answer.steps
        ]

    @field
    async def activity(self, info: Info, from_time: datetime, to_time: datetime) -> list[ActivityCell] | None:
        """Sum a period up by weekday and hour of day: 168 cells, from Monday at midnight on."""
        request = pb.GetActivityRequest(
            organization_id=self.organization_id,
            node_id=self.node_id,
            from_time=stamp_of("fromTime", from_time),
            to_time=stamp_of("toTime", to_time),
        )
        answer = await info.context.call(info.context.stubs.reports.GetActivity, request)
        return [
            ActivityCell(
                weekday=cell.weekday,
                hour=cell.hour,
                requests=Int64(cell.requests),
                total_tokens=Int64(cell.total_tokens),
                charged_micros=Micros(cell.charged_micros),
            )
            for cell in answer.cells
        ]


def summary_of(message: pb.UsageSummary) -> UsageSummary:
    """Read a summary from the contract's message."""
    return UsageSummary(
        requests=Int64(message.requests),
        input_tokens=Int64(message.input_tokens),
        cached_input_tokens=Int64(message.cached_input_tokens),
        cache_write_tokens=Int64(message.cache_write_tokens),
        output_tokens=Int64(message.output_tokens),
        reasoning_tokens=Int64(message.reasoning_tokens),
        total_tokens=Int64(message.total_tokens),
        charged_micros=Micros(message.charged_micros),
        breach_micros=Micros(message.breach_micros),
        estimated_requests=Int64(message.estimated_requests),
        failures=failures_of(message.failures),
        latencies=latencies_of(message.latencies),
        time_zone=message.time_zone,
    )


def token_step_of(message: pb.TokenStep) -> TokenStep:
    """Read a step from the contract's message."""
    return TokenStep(
        start_time=time_of(message.start_time),
        requests=Int64(message.requests),
        input_tokens=Int64(message.input_tokens),
        cached_input_tokens=Int64(message.cached_input_tokens),
        cache_write_tokens=Int64(message.cache_write_tokens),
        output_tokens=Int64(message.output_tokens),
        reasoning_tokens=Int64(message.reasoning_tokens),
        total_tokens=Int64(message.total_tokens),
        charged_micros=Micros(message.charged_micros),
    )


def window_of(message: pb.BurnWindow) -> BurnWindow:
    """Read a window from the contract's message."""
    return BurnWindow(
        from_time=time_of(message.from_time),
        charged_micros=Micros(message.charged_micros),
        hourly_micros=Micros(message.hourly_micros),
        run_out_time=optional_time(message.run_out_time),
    )


def failures_of(message: pb.Failures) -> Failures:
    """Read failures from the contract's message."""
    return Failures(
        upstream_error_requests=Int64(message.upstream_error_requests),
        upstream_cut_requests=Int64(message.upstream_cut_requests),
        client_gone_requests=Int64(message.client_gone_requests),
        status_4xx_requests=Int64(message.status_4xx_requests),
        status_5xx_requests=Int64(message.status_5xx_requests),
        error_ppm=message.error_ppm,
    )


def latencies_of(message: pb.Latencies) -> Latencies:
    """Read latencies from the contract's message."""
    return Latencies(
        mean_ms=Int64(message.mean_ms),
        p50_ms=Int64(message.p50_ms),
        p95_ms=Int64(message.p95_ms),
        overhead_mean_ms=Int64(message.overhead_mean_ms),
        first_token_mean_ms=Int64(message.first_token_mean_ms),
    )


def _check_first(first: int) -> None:
    if not 1 <= first <= STEPS_MAX:
        raise invalid("first", f"must be 1 to {STEPS_MAX}")


def _check_steps(count: int, first: int) -> None:
    if count > first:
        raise invalid("first", f"the period has {count} steps")
