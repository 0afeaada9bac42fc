"""What /metrics and spans tell after completions of each kind."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client.parser import text_string_to_metric_families

from gateway_svc.choices import Choices
from gateway_svc.credentials import Credential, Credentials
from gateway_svc.dialects import Dialect, Request
from gateway_svc.dialects.registry import parse
from gateway_svc.figures import voided
from gateway_svc.policies import ANYTHING
from gateway_svc.providers import Call
from gateway_svc.providers.openai import OpenAI as OpenAIProvider
from gateway_svc.providers.upstream import Room
from gateway_svc.providers.upstream import Upstream as PooledUpstream
from mandate.gateway.v1 import policies_pb2, routes_pb2
from mesh import children
from mesh.caller import acting
from mesh.client import call
from mesh.secret import Secret
from mesh.telemetry import traces
from tests.services.gateway_running import Answer, Mesh, RunningGateway, Tenant, Upstream, gateway_running
from tests.services.identity_running import fresh

CANARY = "canary-of-a-prompt"
HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": CANARY}]}
MODEL = "gpt-6.2-sol"
ASK: dict[str, Any] = {**HELLO, "model": MODEL, "max_tokens": 64}
PLATFORM_KEY = "sk-platform-0123456789"
CHAT = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "mock", "gen_ai_request_model": "mock-model"}
OPENAI = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_request_model": MODEL}

Labels = dict[str, str]


@pytest.fixture(scope="module")
async def gateway(
    mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    settings: dict[str, Any] = {"openai_api_key": Secret(PLATFORM_KEY), "openai_base_url": upstream.url}
    async with gateway_running(mesh, folder, **settings) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant()


class Figures:
    """What a gateway shows, less what it showed before: the registry is the test process's own."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway = gateway
        self._before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    async def begin(self) -> Figures:
        self._before = await self._read()
        return self

    async def grown(self, name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return (await self._read()).get(key, 0.0) - self._before.get(key, 0.0)

    async def _read(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = (await self._gateway.get("/metrics")).body.decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
async def figures(gateway: RunningGateway) -> Figures:
    return await Figures(gateway).begin()


async def test_a_completion_is_counted_with_its_tokens_and_times(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    answer = await gateway.ask(tenant, HELLO, x_mock="tokens=7;cached=1;reasoning=2")
    usage = answer.json["usage"]
    row = await tenant.used(answer.headers["x-request-id"])
    shown = {
        kind: await figures.grown("gen_ai_client_token_usage_sum", **CHAT, gen_ai_token_type=kind)
        for kind in ("input", "output")
    }
    assert shown == {"input": usage["prompt_tokens"], "output": usage["completion_tokens"]}
    classes = {
        kind: await figures.grown("mandate_tokens_total", provider="mock", model="mock-model", **{"class": kind})
        for kind in ("input", "cached_input", "cache_write", "output", "reasoning")
    }
    assert list(classes.values()) == [row.input_tokens, 1, 0, row.output_tokens, 2]
    for name in ("gen_ai_server_request_duration_seconds_count", "gen_ai_client_operation_duration_seconds_count"):
        assert await figures.grown(name, **CHAT, error_type="") == 1
    assert await figures.grown("mandate_overhead_seconds_count", dialect="chat.completions") == 1
    counted = {"provider": "mock", "model": "mock-model", "dialect": "chat.completions", "outcome": "ok"}
    assert await figures.grown("mandate_completions_total", **counted) == 1
    assert await figures.grown("gen_ai_server_time_to_first_token_seconds_count", **CHAT) == 0


async def test_of_a_stream_the_time_to_its_first_token_is_counted(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    assert (await gateway.ask(tenant, {**HELLO, "stream": True}, x_mock="latency_ms=60")).status == 200
    assert await figures.grown("gen_ai_server_time_to_first_token_seconds_count", **CHAT) == 1
    assert await figures.grown("gen_ai_server_time_to_first_token_seconds_sum", **CHAT) >= 0.06


async def test_what_a_provider_refuses_is_counted_by_its_status(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    for status in (503, 418):
        assert (await gateway.ask(tenant, HELLO, x_mock=f"status={status}")).status >= 400
    for name in ("gen_ai_server_request_duration_seconds_count", "gen_ai_client_operation_duration_seconds_count"):
        assert [await figures.grown(name, **CHAT, error_type=kind) for kind in ("503", "4xx", "418", "")] == [
            1,
            1,
            0,
            0,
        ]
    counted = {"provider": "mock", "model": "mock-model", "dialect": "chat.completions", "outcome": "upstream_error"}
    assert await figures.grown("mandate_completions_total", **counted) == 2


async def routed(gateway: RunningGateway, tenant: Tenant, alias: str, *targets: routes_pb2.RouteTarget) -> None:
    request = routes_pb2.CreateRouteRequest(
        organization_id=tenant.family.organization_id, alias=alias, targets=targets, request_id=fresh()
    )
    with acting(tenant.owner):
        await call(gateway.routes.CreateRoute, request)
    await asyncio.sleep(1)


async def test_a_fallback_shows_both_attempts_and_one_completion(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    targets = (
        routes_pb2.RouteTarget(provider="openai", model=MODEL, tier=0, weight=1),
        routes_pb2.RouteTarget(provider="mock", model="mock-model", tier=1, weight=1),
    )
    await routed(gateway, tenant, "twofold", *targets)
    answer = await gateway.ask(tenant, {**ASK, "model": "twofold", "user": "fake:status=429"})
    assert answer.status == 200, answer.body
    attempts = "gen_ai_client_operation_duration_seconds_count"
    assert await figures.grown(attempts, **OPENAI, error_type="429") == 1
    assert await figures.grown(attempts, **CHAT, error_type="") == 1
    assert await figures.grown("gen_ai_server_request_duration_seconds_count", **CHAT, error_type="") == 1


async def test_a_cut_answer_and_one_that_was_never_sent_are_told_apart(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    await gateway.ask(tenant, {**HELLO, "stream": True}, x_mock="die_after=1")
    await gateway.ask(tenant, HELLO, x_mock="refuse=1")  # which is tried twice
    attempts = "gen_ai_client_operation_duration_seconds_count"
    assert [await figures.grown(attempts, **CHAT, error_type=kind) for kind in ("upstream_cut", "not_sent")] == [1, 2]
    counted = {"provider": "mock", "model": "mock-model", "dialect": "chat.completions"}
    outcomes = [
        await figures.grown("mandate_completions_total", **counted, outcome=each) for each in ("upstream_cut", "voided")
    ]
    assert outcomes == [1, 1]


class TheirOwn(Credentials):
    """A vault in which every organization has named an address of its own."""

    async def of(self, organization_id: str, provider: str) -> Credential:
        return Credential(Secret(organization_id), f"https://{provider}.example.com", own=True)


async def test_models_that_tenants_name_are_not_told_apart(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant, figures: Figures
) -> None:
    own = routes_pb2.RouteTarget(
        provider="openai", model="of-their-own", weight=1, context_tokens=32_000, output_tokens_max=4_000, tier=1
    )
    await routed(gateway, tenant, "mixed", routes_pb2.RouteTarget(provider="openai", model=MODEL, weight=1), own)
    parts, pool = gateway.built.parts, PooledUpstream(silence_seconds_max=5, public_only=True, room=Room())
    agent = await parts.directory.who(hashlib.sha256(tenant.key.encode()).digest())
    credentials = TheirOwn(grpc.aio.insecure_channel("127.0.0.1:1"), {})
    choices = Choices(parts.catalog, parts.aliases, credentials, {"openai": OpenAIProvider(pool, pool, upstream.url)})
    request = parse(Dialect.CHAT, json.dumps({**HELLO, "model": "mixed"}).encode())
    found = await choices.of(request, agent, ANYTHING, "seed")
    for choice in found:
        voided(choice, Dialect.CHAT)
    counted = {"provider": "openai", "dialect": "chat.completions", "outcome": "voided"}
    assert [choice.model.name for choice in found] == [MODEL, "of-their-own"]
    for name, number in ((MODEL, 1), ("other", 1), ("of-their-own", 0)):
        assert await figures.grown("mandate_completions_total", model=name, **counted) == number


async def test_refusals_by_policy_replays_and_what_is_shed_are_counted(
    mesh: Mesh, gateway: RunningGateway, figures: Figures, tmp_path: Path
) -> None:
    tenant = await mesh.tenant()
    key = fresh()
    for _ in range(2):
        assert (await gateway.ask(tenant, HELLO, idempotency_key=key)).status == 200
    assert await figures.grown("mandate_replays_total", dialect="chat.completions") == 1
    await gateway.limit(tenant, tenant.family.agent_id, allowed_models=policies_pb2.ModelList())
    await asyncio.sleep(1)
    assert (await gateway.ask(tenant, HELLO)).status == 403
    assert await figures.grown("mandate_violations_total", reason="model_not_allowed") == 1
    other = await mesh.tenant()
    async with gateway_running(mesh, tmp_path, in_flight_max=1) as small:
        answers = await asyncio.gather(*(small.ask(other, HELLO, x_mock="latency_ms=400") for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [200, 503]
    assert await figures.grown("mandate_shed_total", what="requests") == 1


async def test_a_circuit_that_opens_is_counted(
    mesh: Mesh, tmp_path: Path, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = await mesh.tenant()
    nowhere = f"http://127.0.0.1:{children.free_port()}"
    async with gateway_running(mesh, tmp_path, openai_api_key=Secret(PLATFORM_KEY), openai_base_url=nowhere) as gateway:
        for _ in range(7):
            await gateway.ask(tenant, ASK)
    assert await figures.grown("mandate_circuits_opened_total", provider="openai") == 1
    assert [record.message for record in caplog.records].count("upstream.circuit_opened") == 1


async def test_a_stream_that_nobody_reads_is_counted_once_it_is_drained(
    gateway: RunningGateway, tenant: Tenant, figures: Figures
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await gateway.ask(tenant, {**HELLO, "stream": True}, x_mock="tokens=20;events=20;event_ms=50")
    async with asyncio.timeout(10):
        while True:
            if await figures.grown("mandate_streams_left_total", ending="drained"):
                return
            await asyncio.sleep(0.05)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Trace what this process does."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def ended(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    async with asyncio.timeout(5):
        while True:
            for span in spans.get_finished_spans():
                if span.name == name:
                    return span
            await asyncio.sleep(0.01)


def everything(spans: InMemorySpanExporter) -> str:
    return "".join(span.to_json() for span in spans.get_finished_spans())


async def test_the_spans_of_a_completion_say_who_what_and_how_it_went(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant, spans: InMemorySpanExporter
) -> None:
    answer = await gateway.ask(tenant, ASK)
    assert answer.status == 200
    served, asked = await ended(spans, "POST /v1/chat/completions"), await ended(spans, f"chat {MODEL}")
    usage = {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 8}
    common: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": False,
        "http.response.status_code": 200,
        **usage,
    }
    where = urlsplit(upstream.url)
    place = {"server.address": where.hostname, "server.port": where.port}
    assert dict(asked.attributes or {}) == common | {"gen_ai.request.max_tokens": 64} | place
    assert asked.kind is SpanKind.CLIENT
    assert asked.parent is not None
    assert served.context is not None
    assert asked.parent.span_id == served.context.span_id
    attributes = dict(served.attributes or {})
    assert attributes.items() >= common.items()
    assert attributes["gen_ai.agent.id"] == (await tenant.used(answer.headers["x-request-id"])).agent_id
    assert attributes["mandate.organization_id"] == tenant.family.organization_id
    assert (attributes["mandate.outcome"], attributes["mandate.attempts"]) == ("ok", 1)
    told = everything(spans)
    for secret in (CANARY, tenant.key, PLATFORM_KEY, "word0"):
        assert secret not in told


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({**ASK, "user": "fake:status=503"}, "503"),
        ({**ASK, "user": "fake:die=1"}, "upstream_cut"),
        ({**ASK, "model": CANARY}, "model_not_found"),
        ({**ASK, "messages": CANARY}, "invalid_field"),
    ],
)
async def test_a_span_tells_the_kind_of_a_failure_and_nothing_that_was_sent_or_said(
    gateway: RunningGateway, tenant: Tenant, spans: InMemorySpanExporter, body: dict[str, Any], kind: str
) -> None:
    answer: Answer = await gateway.ask(tenant, body)
    assert answer.status >= 400
    served = await ended(spans, "POST /v1/chat/completions")
    assert (served.attributes or {})["error.type"] == kind
    told = everything(spans)
    for secret in (CANARY, tenant.key, PLATFORM_KEY):
        assert secret not in told
    assert not any(span.events for span in spans.get_finished_spans())


async def test_an_operators_upstream_gets_the_trace_and_a_tenants_own_does_not(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant, spans: InMemorySpanExporter
) -> None:
    answer = await gateway.ask(tenant, ASK)
    asked = await ended(spans, f"chat {MODEL}")
    assert asked.context is not None
    sent = upstream.billed(answer.headers["x-request-id"])["traceparent"]
    assert sent.startswith(f"00-{asked.context.trace_id:032x}-{asked.context.span_id:016x}-")


@pytest.mark.parametrize(("base_url", "own", "told"), [("", False, True), ("", True, True), ("its own", True, False)])
async def test_a_trace_leaves_only_for_an_address_of_the_operators(
    upstream: Upstream, spans: InMemorySpanExporter, base_url: str, *, own: bool, told: bool
) -> None:
    pool = PooledUpstream(silence_seconds_max=5, public_only=False, room=Room())
    document: dict[str, Any] = {**ASK}
    request_id = fresh()
    credential = Credential(Secret(PLATFORM_KEY), base_url and upstream.url, own=own)
    asked = Call(request_id, Request(Dialect.CHAT, document, MODEL), document, MODEL, 64, credential)
    with traces.doing("a completion"):
        async with OpenAIProvider(pool, pool, upstream.url).ask(asked) as exchange:
            await exchange.body()
    await pool.close()
    assert spans.get_finished_spans()
    assert bool(upstream.billed(request_id)["traceparent"]) is told
