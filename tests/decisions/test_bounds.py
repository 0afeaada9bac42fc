from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc import bounds
from gateway_svc.bounds import Bound, Model
from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.dialects import chat as dialect
from gateway_svc.dialects.registry import parse
from gateway_svc.policies import ANYTHING, Policy, Terms, policy
from mesh.errors import InvalidArgument

GPT = Model("openai", "gpt-4.1", 100_000, 8_000)
REASONING = Model("openai", "o3", 100_000, 8_000)
MOCK = Model("mock", "mock-model", 1_000_000, 100_000)
HELLO: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}]}


def chat(**fields: Any) -> Request:
    return dialect.parse(orjson.dumps({**HELLO, **fields}))


def bound(request: Request, model: Model, rule: Policy, *, clamp: bool) -> Bound:
    return bounds.bound(request, [(model, dialect.size(request.document))], rule, clamp=clamp)


def input_bound(request: Request, model: Model) -> int:
    return bounds.input_bound(dialect.size(request.document), model)


def limited(*, per_request: int | None = None, tpm: int | None = None) -> Policy:
    return policy(Terms(max_tokens_per_request=per_request, tokens_per_minute=tpm), "org_1")


@pytest.mark.parametrize(
    ("fields", "rule", "wanted"),
    [
        ({}, ANYTHING, 4_096),
        ({"max_tokens": 10}, ANYTHING, 10),
        ({"max_completion_tokens": 10}, ANYTHING, 10),
        ({"max_tokens": 10, "max_completion_tokens": 9}, ANYTHING, 9),
        ({"max_tokens": 9_000}, ANYTHING, 8_000),
        ({"max_tokens": 5_000}, ANYTHING, 5_000),
        ({"max_tokens": 5_000}, limited(per_request=100), 100),
        ({"max_tokens": 5_000, "n": 4}, limited(per_request=100), 25),
        ({"max_tokens": 5_000}, limited(tpm=1), 1),
    ],
)
def test_the_output_is_the_least_of_client_model_and_policy(fields: Any, rule: Policy, wanted: int) -> None:
    assert bound(chat(**fields), GPT, rule, clamp=True).output_tokens_wanted == wanted


def test_more_choices_than_tokens_that_a_policy_allows_are_refused() -> None:
    with pytest.raises(InvalidArgument) as raised:
        bound(chat(n=16), GPT, limited(per_request=15), clamp=True)
    assert raised.value.details["field"] == "n"


def test_a_clamp_goes_down_to_16_tokens_and_no_further() -> None:
    assert bound(chat(max_tokens=100), GPT, ANYTHING, clamp=True).output_tokens_min == 16
    assert bound(chat(max_tokens=5), GPT, ANYTHING, clamp=True).output_tokens_min == 5
    assert bound(chat(max_tokens=100), GPT, ANYTHING, clamp=False).output_tokens_min == 100


def test_choices_multiply_what_a_request_can_come_to() -> None:
    assert Bound(10, 100, 16, 3).tokens == 310


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_input_bound_is_never_below_the_bytes_of_the_text(texts: list[str]) -> None:
    request = chat(messages=[{"role": "user", "content": text} for text in texts])
    size = sum(len(text.encode(errors="replace")) for text in texts)
    assert input_bound(request, GPT) >= size + len(texts) * dialect.MESSAGE_TOKENS


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_mock_counts_a_token_for_every_four_bytes(texts: list[str]) -> None:
    request = chat(messages=[{"role": "user", "content": text} for text in texts])
    size = sum(len(text.encode()) for text in texts)
    assert input_bound(request, MOCK) == (size + 3) // 4


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "hi", "some_new_field": 1}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "f"}}]}]},
        {"some_new_field": 1},
    ],
)
def test_what_cannot_be_counted_is_bounded_by_the_context_window(fields: Any) -> None:
    assert input_bound(chat(**fields), GPT) == GPT.context_tokens


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (GPT, bounds.IMAGE_TOKENS["openai"]),
        (Model("openai", "gpt-4o-mini", 100_000, 8_000), bounds.TILED_IMAGE_TOKENS),
        (Model("anthropic", "claude", 100_000, 8_000), bounds.IMAGE_TOKENS["anthropic"]),
    ],
)
def test_an_image_has_its_vendors_bound_and_its_bytes_none(model: Model, tokens: int) -> None:
    shown = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'a' * 100_000}"}}]
    none = input_bound(chat(messages=[{"role": "user", "content": []}]), model)
    assert tokens <= input_bound(chat(messages=[{"role": "user", "content": shown}]), model) - none <= tokens + 100


def test_an_image_at_a_vendor_that_tells_no_bound_is_bounded_by_the_context_window() -> None:
    shown = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    compatible = Model("groq", "llama", 100_000, 8_000)
    assert input_bound(chat(messages=[{"role": "user", "content": shown}]), compatible) == 100_000


def test_what_cannot_be_counted_is_refused_where_no_window_is_known() -> None:
    with pytest.raises(InvalidArgument) as raised:
        input_bound(chat(some_new_field=1), Model("openai", "x", 0, 10))
    assert raised.value.reason == "UNBOUNDED_REQUEST"


LONG = {"messages": [{"role": "user", "content": "x" * 100_001}]}
UNPRICED = replace(GPT, longer_unpriced=True)


def test_text_that_may_pass_a_window_is_bounded_by_it() -> None:
    assert input_bound(chat(**LONG), GPT) == GPT.context_tokens


@pytest.mark.parametrize("model", [UNPRICED, replace(MOCK, context_tokens=25_000)])
def test_text_that_may_pass_what_a_price_holds_for_or_surely_passes_a_window_is_refused(model: Model) -> None:
    with pytest.raises(InvalidArgument) as raised:
        input_bound(chat(**LONG), model)
    assert (raised.value.reason, raised.value.details["field"]) == ("CONTEXT_LENGTH_EXCEEDED", "messages")


def test_what_cannot_be_counted_is_refused_where_longer_prompts_have_no_known_price() -> None:
    with pytest.raises(InvalidArgument) as raised:
        input_bound(chat(some_new_field=1), UNPRICED)
    assert (raised.value.reason, raised.value.details["field"]) == ("UNBOUNDED_REQUEST", "messages")


@pytest.mark.parametrize(
    ("dialect_of_client", "body", "field"),
    [
        (Dialect.CHAT, HELLO, "messages"),
        (Dialect.MESSAGES, {**HELLO, "max_tokens": 5}, "messages"),
        (Dialect.RESPONSES, {"model": "gpt-4.1", "input": "hello"}, "input"),
        (Dialect.EMBEDDINGS, {"model": "gpt-4.1", "input": "hello"}, "input"),
    ],
)
def test_the_prompt_is_named_as_the_client_knows_it(dialect_of_client: Dialect, body: Any, field: str) -> None:
    request = parse(dialect_of_client, orjson.dumps(body))
    with pytest.raises(InvalidArgument) as raised:
        bounds.bound(request, [(UNPRICED, Size(100_001))], ANYTHING, clamp=True)
    assert raised.value.details["field"] == field


whole = st.integers(0, 10**9)
sizes = st.builds(Size, whole, whole, st.integers(0, 1_000), whole, st.booleans())
windows = st.integers(1, 10**7)
providers = st.sampled_from(("openai", "anthropic", "mock", "groq"))
models = st.builds(Model, providers, st.sampled_from(("gpt-4o-mini", "x")), windows, windows, st.booleans())


@given(sizes, models)
def test_an_input_bound_is_that_of_the_bytes_or_of_a_window_that_the_provider_holds(size: Size, model: Model) -> None:
    try:
        found = bounds.input_bound(size, model)
    except InvalidArgument:
        assert model.longer_unpriced or model.provider == "mock"
        return
    assert 0 <= found <= model.context_tokens
    if found < size.tokens and model.provider != "mock":
        assert found == model.context_tokens
        assert not model.longer_unpriced


@given(
    ways=st.lists(st.tuples(models, sizes), min_size=1, max_size=3),
    rule=st.builds(limited, per_request=st.none() | windows, tpm=st.none() | windows),
    max_tokens=st.none() | st.integers(1, 10**6),
    choices=st.integers(1, 16),
    clamp=st.booleans(),
)
def test_no_bound_is_below_what_a_hold_may_be_of(
    *, ways: list[tuple[Model, Size]], rule: Policy, max_tokens: int | None, choices: int, clamp: bool
) -> None:
    try:
        found = bounds.bound(chat(max_tokens=max_tokens, n=choices), ways, rule, clamp=clamp)
    except InvalidArgument:
        return
    assert found.input_tokens_max >= 0
    assert 1 <= found.output_tokens_min <= found.output_tokens_wanted
    assert found.choices == choices
    assert found.tokens >= found.input_tokens_max + choices


@pytest.mark.parametrize(
    "fields",
    [
        {"web_search_options": {}},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"service_tier": "priority"},
        {"tools": [{"type": "web_search"}]},
        {"models": ["a-model-that-is-not-allowed"]},
        {"best_of": 20},
        {"max_output_tokens": 100_000},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
    ],
)
def test_what_no_price_covers_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidArgument) as raised:
        bound(chat(**fields), GPT, ANYTHING, clamp=True)
    assert raised.value.reason == "UNPRICED_FIELD"


def test_tools_count_with_their_bytes() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 1000}}
    assert input_bound(chat(tools=[tool]), GPT) - input_bound(chat(), GPT) >= 1000


@pytest.mark.parametrize(
    ("fields", "model", "name"),
    [
        ({}, GPT, "max_tokens"),
        ({"max_tokens": 99}, GPT, "max_tokens"),
        ({"max_completion_tokens": 99}, GPT, "max_tokens"),
        ({"max_tokens": 99, "max_completion_tokens": 98}, GPT, "max_tokens"),
        ({"max_tokens": 99}, REASONING, "max_completion_tokens"),
    ],
)
def test_the_limit_goes_upstream_under_one_name(fields: Any, model: Model, name: str) -> None:
    body = dialect.limited(chat(**fields), model.name, 50)
    assert {key: body[key] for key in ("max_tokens", "max_completion_tokens") if key in body} == {name: 50}


def test_usage_is_always_asked_for_in_a_stream() -> None:
    body = dialect.limited(chat(stream=True, stream_options={"include_obfuscation": False}), GPT.name, 50)
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert "stream_options" not in dialect.limited(chat(), GPT.name, 50)
