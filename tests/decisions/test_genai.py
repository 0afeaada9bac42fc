from __future__ import annotations

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as released
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes

from gateway_svc import genai
from gateway_svc.dialects import Dialect
from gateway_svc.usage import TokenUsage
from mesh.telemetry import metrics, traces


def test_every_name_is_the_conventions_own() -> None:
    known = {
        text
        for module in (released, error_attributes, http_attributes, server_attributes)
        for name, text in vars(module).items()
        if name.isupper()
    }
    ours = {text for name, text in vars(genai).items() if name.isupper() and isinstance(text, str) and "." in text}
    assert len(ours) == 15
    assert ours | {traces.ERROR_TYPE} <= known
    values = {
        name: {member.value for member in enum} for name, enum in vars(released).items() if name.endswith("Values")
    }
    assert set(genai.OPERATIONS.values()) <= values["GenAiOperationNameValues"]
    assert {genai.INPUT, genai.OUTPUT} <= values["GenAiTokenTypeValues"]


def test_every_dialect_is_an_operation() -> None:
    assert genai.OPERATIONS.keys() == set(Dialect)


@pytest.mark.parametrize(
    ("metric", "name", "unit"),
    [
        (metrics.TOKEN_USAGE, gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE, ""),
        (metrics.UPSTREAM_SECONDS, gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION, "_seconds"),
        (metrics.REQUEST_SECONDS, gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION, "_seconds"),
        (metrics.FIRST_TOKEN_SECONDS, gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, "_seconds"),
    ],
)
def test_metrics_have_the_conventions_names_as_prometheus_writes_them(
    metric: metrics.Histograms, name: str, unit: str
) -> None:
    (family,) = metric.describe()
    assert family.name == name.replace(".", "_") + unit


def test_what_is_cached_or_thought_is_counted_within_the_whole() -> None:
    usage = TokenUsage(10, cached_input_tokens=5, cache_write_tokens=3, output_tokens=7, reasoning_tokens=2)
    assert genai.used(usage) == {
        "gen_ai.usage.input_tokens": 18,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.usage.cache_creation.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 2,
    }
    assert genai.used(TokenUsage(1)) == {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 0}


@pytest.mark.parametrize(
    ("base_url", "told"),
    [
        ("https://api.openai.com", ("api.openai.com", 443)),
        ("http://10.0.0.1:8080/v1", ("10.0.0.1", 8080)),
        ("https://user:secret@models.example.com/path?key=secret", ("models.example.com", 443)),
        ("https://models.example.com:99999", None),
        ("nowhere", None),
    ],
)
def test_of_an_address_the_host_and_the_port_are_told(base_url: str, told: tuple[str, int] | None) -> None:
    expected = {} if told is None else {"server.address": told[0], "server.port": told[1]}
    assert genai.server(base_url) == expected
