"""Each way in and each reason to be refused: the status, the words and the headers, on record or not, at no cost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from gateway_svc.http.app import Application
from mesh.secret import Secret
from tests.services.gateway_running import Answer, Mesh, Upstream, endpoints_of_nothing, gateway_running
from tests.services.refusals_running import (
    ALIAS,
    CHAT,
    COUNT,
    DOORS,
    EMBEDDINGS,
    LIST,
    MESSAGES,
    NOT_OURS,
    RESPONSES,
    SHOW,
    Door,
    Knock,
    Scene,
    Scenes,
    facts_of,
    knocks,
    refused_in,
    scenes_running,
)

COMPLETIONS = (CHAT, RESPONSES, MESSAGES, EMBEDDINGS)
POSTED = (*COMPLETIONS, COUNT)
KEYED = (*POSTED, LIST, SHOW)
KINDS = {  # OpenAI's type and Anthropic's, by status
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    402: ("insufficient_quota", "billing_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
}
NO_RETRY = (402, 403)
DEEP = b'{"a":' * 100 + b"1" + b"}" * 100
LARGE = b" " * (1024 * 1024 + 1)


@dataclass(frozen=True, slots=True)
class Denial:
    """One reason, as it is told; `limit` names the header that says how a rate stands."""

    scene: str
    status: int
    code: str
    doors: tuple[str, ...]
    model: str = ""
    tools: bool = False
    raw: bytes = b""
    is_violation: bool = False
    is_retried: bool = False
    limit: str = ""

    def __str__(self) -> str:
        return f"{self.scene}-{self.code}"


DENIALS = (
    Denial("no_key", 401, "invalid_api_key", KEYED),
    Denial("bad_key", 401, "invalid_api_key", KEYED),
    Denial("revoked_key", 401, "invalid_api_key", KEYED),
    Denial("expired_key", 401, "invalid_api_key", KEYED),
    Denial("suspended_agent", 403, "agent_suspended", KEYED),
    Denial("alien_alias", 404, "model_not_found", (*POSTED, SHOW), model=ALIAS),
    Denial("good", 404, "model_not_found", (*POSTED, SHOW), model=NOT_OURS),
    Denial("other_models", 403, "model_not_allowed", POSTED, is_violation=True),
    Denial("other_models", 404, "model_not_found", (SHOW,)),
    Denial("other_endpoints", 403, "endpoint_not_allowed", POSTED, is_violation=True),
    Denial("other_tools", 403, "tool_not_allowed", (CHAT, RESPONSES, MESSAGES, COUNT), tools=True, is_violation=True),
    Denial("other_providers", 403, "provider_not_allowed", POSTED, is_violation=True),
    Denial("other_providers", 404, "model_not_found", (SHOW,)),
    Denial("dear", 403, "request_cost_limit", COMPLETIONS, is_violation=True),
    Denial("over_requests", 429, "rate_limit_exceeded", POSTED, is_violation=True, is_retried=True, limit="requests"),
    Denial("over_tokens", 429, "tokens_above_rate", COMPLETIONS, is_violation=True),
    Denial("empty_wallet", 402, "insufficient_quota", COMPLETIONS),
    Denial("exhausted_budget", 402, "insufficient_quota", COMPLETIONS),
    Denial("disabled_budget", 402, "budget_disabled", COMPLETIONS),
    Denial("money_in_flight", 429, "budget_in_flight", COMPLETIONS, is_retried=True),
    Denial("good", 413, "body_too_large", POSTED, raw=LARGE),
    Denial("good", 400, "invalid_json", POSTED, raw=DEEP),
    Denial("good", 400, "invalid_json", POSTED, raw=b"{"),
)
CASES = [pytest.param(denial, DOORS[path], id=f"{denial}:{path}") for denial in DENIALS for path in denial.doors]
METHODS = [
    pytest.param(door, method, id=f"{method}:{door.path}")
    for door in DOORS.values()
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND")
    if method != door.method
]
SERVED = sorted(
    {denial.scene for denial in DENIALS} - {"no_key", "bad_key", "revoked_key", "expired_key", "suspended_agent"}
)


@pytest.fixture(scope="module")
async def scenes(mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scenes]:
    settings: dict[str, Any] = {
        "openai_api_key": Secret("sk-platform-0123456789"),
        "openai_base_url": upstream.url,
        "anthropic_api_key": Secret("sk-ant-0123456789"),
        "anthropic_base_url": upstream.url,
    }
    async with (
        gateway_running(mesh, tmp_path_factory.mktemp("gateway"), **settings) as gateway,
        scenes_running(gateway, upstream) as running,
    ):
        yield running


def test_every_route_of_the_gateway_is_a_door_of_this_matrix() -> None:
    found = set(Application(endpoints_of_nothing(), instance="", body_bytes_max=1).routes)
    prefixes = {True: ("", "/gateway"), False: ("",)}
    doors = {(door.method, prefix + door.path) for door in DOORS.values() for prefix in prefixes[door.is_keyed]}
    assert found == doors | {("HEAD", path) for method, path in doors if method == "GET"}
    assert {door.path for door in DOORS.values() if door.is_keyed} == set(KEYED)


@pytest.mark.parametrize(("denial", "door"), CASES)
async def test_a_refusal_is_told_exactly_costs_nothing_and_is_on_record_where_a_policy_made_it(
    scenes: Scenes, denial: Denial, door: Door
) -> None:
    scene = await scenes.of(denial.scene)
    calls = scenes.calls()
    asked = list(knocks(door, model=denial.model, tools=denial.tools, raw=denial.raw))
    answers = await asyncio.gather(*(scenes.knock(scene, knock) for knock in asked))
    for knock, answer in zip(asked, answers, strict=True):
        is_told(answer, knock, denial.status, denial.code)
        is_steered(answer, knock, denial)
    assert scenes.calls() == calls
    await is_on_record(scenes, scene, denial, [answer.headers["x-request-id"] for answer in answers])


def is_told(answer: Answer, knock: Knock, status: int, code: str) -> None:
    """Check the status, the shape, the words and the ids of one answer."""
    assert answer.status == status, (knock.path, answer.body)
    request_id = answer.headers["x-request-id"]
    assert request_id.startswith("req_")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-mandate-instance"] == "gateway-0"
    openais, anthropics = KINDS[status]
    error = answer.json["error"]
    assert error["message"]
    if knock.is_anthropics:
        assert answer.headers["request-id"] == request_id
        assert (answer.json["type"], answer.json["request_id"]) == ("error", request_id)
        assert (error["type"], error["details"]["error_code"]) == (anthropics, code)
        assert set(answer.json) == {"type", "error", "request_id"}
        return
    assert set(answer.json) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (openais, code)


def is_steered(answer: Answer, knock: Knock, denial: Denial) -> None:
    """Check the headers by which SDKs decide whether to come again, and those that say how to ask."""
    headers = answer.headers
    is_final = denial.status in NO_RETRY or denial.code == "tokens_above_rate"
    assert headers.get("x-should-retry") == ("false" if is_final else None)
    assert ("retry-after-ms" in headers, "retry-after" in headers) == (denial.is_retried, denial.is_retried)
    if denial.is_retried:
        assert 0 < int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"]) <= 120_000
    if denial.limit:
        for figure, told in (("limit", "1"), ("remaining", "0")):
            openais, anthropics = f"x-ratelimit-{figure}-{denial.limit}", f"anthropic-ratelimit-{denial.limit}-{figure}"
            assert headers[anthropics if knock.is_anthropics else openais] == told
    challenge = {"no_key": 'Bearer realm="mandate"'}.get(denial.scene, 'Bearer error="invalid_token"')
    assert headers.get("www-authenticate") == (challenge if denial.status == 401 else None)


async def is_on_record(scenes: Scenes, scene: Scene, denial: Denial, request_ids: list[str]) -> None:
    """Check that each refusal by a policy is told of by one fact, and that no other refusal is by any."""
    count = len(request_ids) if denial.is_violation else 0
    facts = await facts_of(scenes.gateway, request_ids, count)
    assert refused_in(facts) == count
    if facts:
        assert scene.tenant
        assert {fact["subject"] for fact in facts} == {scene.tenant.family.agent_id}
        assert {fact["detail"]["fact"]["reason"] for fact in facts} == {denial.code}
        assert {fact["detail"]["fact"]["api_key_id"] for fact in facts} == {scene.tenant.key_id}


@pytest.mark.parametrize(("door", "method"), METHODS)
async def test_a_method_that_a_path_does_not_have_is_405_and_told_which_it_has(
    scenes: Scenes, door: Door, method: str
) -> None:
    scene, calls = await scenes.of("good"), scenes.calls()
    for knock in knocks(door):
        answer = await scenes.knock(scene, dataclasses.replace(knock, method=method))
        is_told(answer, knock, 405, "method_not_allowed")
        assert answer.headers["allow"] == {"POST": "POST", "GET": "GET, HEAD"}[door.method]
    assert scenes.calls() == calls


async def test_a_method_that_http_does_not_have_is_no_request(scenes: Scenes) -> None:
    scene = await scenes.of("good")
    knock = next(knocks(DOORS[CHAT]))
    is_told(await scenes.knock(scene, dataclasses.replace(knock, method="BREW")), knock, 400, "bad_request")


@pytest.mark.parametrize("path", [*POSTED, LIST])
async def test_what_is_at_no_url_is_told_in_the_shape_of_its_neighbours(scenes: Scenes, path: str) -> None:
    scene = await scenes.of("good")
    door = dataclasses.replace(DOORS[path], path=f"{path}ly/nothing")
    for knock in knocks(door):
        is_told(await scenes.knock(scene, knock), knock, 404, "unknown_url")


@pytest.mark.parametrize("path", [LIST, SHOW])
@pytest.mark.parametrize("scene", ["no_key", "bad_key", "revoked_key", "expired_key", "suspended_agent"])
async def test_who_only_asks_for_a_head_is_refused_as_well(scenes: Scenes, scene: str, path: str) -> None:
    knock = next(knocks(DOORS[path]))
    answer = await scenes.knock(await scenes.of(scene), dataclasses.replace(knock, method="HEAD"))
    assert (answer.status, answer.body) == (403 if scene == "suspended_agent" else 401, b"")
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("name", SERVED)
async def test_whoever_may_not_complete_may_still_see_what_there_is(scenes: Scenes, name: str) -> None:
    scene = await scenes.of(name)
    for knock in knocks(DOORS[LIST]):
        assert (await scenes.knock(scene, knock)).status == 200


@pytest.mark.parametrize("path", POSTED)
async def test_without_any_of_these_reasons_a_door_is_open(scenes: Scenes, path: str) -> None:
    scene = await scenes.of("good")
    for knock in knocks(DOORS[path], model="mock-model"):
        answer = await scenes.knock(scene, knock)
        assert answer.status == 200, answer.body
