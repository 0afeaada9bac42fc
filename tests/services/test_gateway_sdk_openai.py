"""OpenAI's own client, unchanged, over the mock models, a provider of its dialects and one of another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from mesh.secret import Secret
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, Upstream, gateway_running
from tests.services.refusals_running import Scenes, scenes_running

MOCK, SAME, CROSS = "mock-model", "gpt-6.2-sol", "claude-sonnet-5-5"
MODELS = (MOCK, SAME, CROSS)
VENDORS = (SAME, CROSS)
SAID: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]
WORDS = [f"word{number}" for number in range(8)]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="
VECTOR = [0.25, -0.5, 0.125, 1.0]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TOOL: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, upstream: Upstream, tmp_path_factory: Any) -> AsyncIterator[RunningGateway]:
    settings: dict[str, Any] = {
        "openai_api_key": Secret("sk-platform-0123456789"),
        "openai_base_url": upstream.url,
        "anthropic_api_key": Secret("sk-ant-0123456789"),
        "anthropic_base_url": upstream.url,
    }
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
async def scenes(gateway: RunningGateway, upstream: Upstream) -> AsyncIterator[Scenes]:
    async with scenes_running(gateway, upstream) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(10**12)


@pytest.fixture
async def client(gateway: RunningGateway, tenant: Tenant) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}/v1", max_retries=0) as opened:
        yield opened


def request_id_of(answer: Any) -> str:
    return str(answer._request_id)


def told(model: str, text: str) -> None:
    assert text.split() == (["tok"] * 16 if model == MOCK else WORDS)


@pytest.mark.parametrize("model", MODELS)
async def test_a_chat_is_completed(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=SAID, max_tokens=64)
    told(model, answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert request_id_of(answer).startswith("req_")


@pytest.mark.parametrize("model", MODELS)
async def test_a_chat_is_streamed_with_its_usage_last(client: AsyncOpenAI, model: str) -> None:
    stream = client.chat.completions.stream(
        model=model, messages=SAID, max_tokens=64, stream_options={"include_usage": True}
    )
    async with stream as events:
        answer = await events.get_final_completion()
    told(model, answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == (16 if model == MOCK else 8)


@pytest.mark.parametrize("model", MODELS)
async def test_a_response_is_created(client: AsyncOpenAI, model: str) -> None:
    answer = await client.responses.create(model=model, instructions="be brief", input="one two", max_output_tokens=64)
    told(model, answer.output_text)
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.parametrize("model", MODELS)
async def test_a_response_is_streamed_in_order_to_its_completion(client: AsyncOpenAI, model: str) -> None:
    async with client.responses.stream(model=model, input="one two", max_output_tokens=64) as stream:
        events = [event async for event in stream]
        answer = await stream.get_final_response()
    told(model, answer.output_text)
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(numbers)
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta").split()


@pytest.mark.parametrize("model", [MOCK, SAME])
@pytest.mark.parametrize("given", ["one two", ["one two", "three"]])
async def test_embeddings_are_the_same_in_either_format(client: AsyncOpenAI, model: str, given: Any) -> None:
    packed = await client.embeddings.create(model=model, input=given)  # the client asks for base64 by itself
    plain = await client.embeddings.create(model=model, input=given, encoding_format="float")
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
    assert plain.data[-1].embedding == VECTOR
    assert len(plain.data) == (1 if isinstance(given, str) else 2)
    assert plain.usage.prompt_tokens > 0


@pytest.mark.parametrize("model", VENDORS)
async def test_a_tool_is_called_in_a_chat(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=SAID, tools=[CHAT_TOOL], max_tokens=64)
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [getattr(call, "function").name for call in calls] == ["weather"]  # noqa: B009  # a union of calls


@pytest.mark.parametrize("model", VENDORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_in_a_response(client: AsyncOpenAI, model: str, *, stream: bool) -> None:
    if stream:
        asked = client.responses.stream(model=model, input="one", tools=[TOOL], max_output_tokens=64)
        async with asked as events:
            answer: Any = await events.get_final_response()
    else:
        answer = await client.responses.create(model=model, input="one", tools=[TOOL], max_output_tokens=64)
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments) == {"city": "Bern"}
    again: Any = [
        {"role": "user", "content": "one"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    answer = await client.responses.create(model=model, input=again, max_output_tokens=64)
    assert answer.output_text.split() == WORDS


@pytest.mark.parametrize("model", VENDORS)
async def test_images_schemas_and_effort_reach_every_vendor(
    client: AsyncOpenAI, upstream: Upstream, model: str
) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    content: Any = [{"type": "text", "text": "where"}, image]
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        reasoning_effort="low",
        max_completion_tokens=4_096,
    )
    sent = json.dumps(upstream.billed(request_id_of(answer))["body"])
    assert PNG in sent
    assert '"city"' in sent
    assert ("effort" in sent) or ("thinking" in sent)


async def test_models_are_listed_and_shown(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert set(MODELS) <= set(listed)
    assert (await client.models.retrieve(SAME)).owned_by == "openai"


ERRORS: dict[str, tuple[str, type[openai.APIStatusError], int, str]] = {
    "bad_key": (MOCK, openai.AuthenticationError, 401, "invalid_api_key"),
    "suspended_agent": (MOCK, openai.PermissionDeniedError, 403, "agent_suspended"),
    "other_models": (MOCK, openai.PermissionDeniedError, 403, "model_not_allowed"),
    "good": ("no-such-model", openai.NotFoundError, 404, "model_not_found"),
    "empty_wallet": (MOCK, openai.APIStatusError, 402, "insufficient_quota"),
    "over_requests": (MOCK, openai.RateLimitError, 429, "rate_limit_exceeded"),
}
WIRES: dict[str, Callable[[AsyncOpenAI, str], Awaitable[object]]] = {
    "chat": lambda client, model: client.chat.completions.create(model=model, messages=SAID),
    "stream": lambda client, model: client.chat.completions.create(model=model, messages=SAID, stream=True),
    "responses": lambda client, model: client.responses.create(model=model, input="one"),
    "embeddings": lambda client, model: client.embeddings.create(model=model, input="one"),
}


@pytest.mark.parametrize("scene", ERRORS)
@pytest.mark.parametrize("wire", WIRES)
async def test_refusals_are_the_clients_own_exceptions(scenes: Scenes, scene: str, wire: str) -> None:
    model, kind, status, code = ERRORS[scene]
    key = (await scenes.of(scene)).key
    async with AsyncOpenAI(api_key=key, base_url=f"{scenes.gateway.url}/v1", max_retries=0) as client:
        with pytest.raises(kind) as raised:
            await WIRES[wire](client, model)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert str(raised.value.request_id).startswith("req_")


def counted(sent: list[Any]) -> Any:
    """Return an HTTP client that notes each request, retries among them."""

    async def count(request: Any) -> None:
        sent.append(request)

    return openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})


async def test_money_that_is_in_flight_is_waited_for(scenes: Scenes) -> None:
    scene, sent = await scenes.of("money_in_flight"), list[Any]()
    base_url = f"{scenes.gateway.url}/v1"
    async with AsyncOpenAI(api_key=scene.key, base_url=base_url, http_client=counted(sent)) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model=MOCK, messages=SAID, max_tokens=16))
        async with asyncio.timeout(10):
            while True:
                if len(sent) > 1:
                    break
                await asyncio.sleep(0.01)
        scenes.close()
        assert (await asking).choices[0].message.content
    assert [request.headers["x-stainless-retry-count"] for request in sent][:2] == ["0", "1"]


@pytest.mark.parametrize("scene", ["empty_wallet", "exhausted_budget", "disabled_budget", "other_models", "bad_key"])
async def test_what_would_be_refused_again_is_asked_once(scenes: Scenes, scene: str) -> None:
    key, sent = (await scenes.of(scene)).key, list[Any]()
    base_url = f"{scenes.gateway.url}/v1"
    async with AsyncOpenAI(api_key=key, base_url=base_url, http_client=counted(sent)) as client:
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model=MOCK, messages=SAID, max_tokens=16)
    assert len(sent) == 1
