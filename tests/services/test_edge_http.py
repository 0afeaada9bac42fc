from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

import asyncpg
import httpx
import pytest

from mesh import children
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running
from tests.services.identity_running import PASSWORD

GRAPHQL_JSON = "application/graphql-response+json"
LOG_IN = "mutation($i: LogInInput!) { logIn(input: $i) { userErrors { code } } }"
ORGANIZATION = 'mutation { createOrganization(input: {name: "A", idempotencyKey: "k"}) { organization { id } } }'
FRIEND = "https://friend.example"


@pytest.fixture(scope="module")
async def addresses(house: House, ledger: RunningLedger) -> AsyncIterator[Mapping[str, str]]:
    async with backed(house, ledger) as found:
        yield found


@pytest.fixture(scope="module")
async def edge(house: House, addresses: Mapping[str, str]) -> AsyncIterator[RunningEdge]:
    async with edge_running(house, addresses, cors_origins=(FRIEND,)) as running:
        yield running


@pytest.fixture(scope="module")
async def production(house: House, addresses: Mapping[str, str]) -> AsyncIterator[RunningEdge]:
    async with edge_running(house, addresses, environment="production", secure_cookies=True) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


async def logged_in(edge: RunningEdge, ada: Asker) -> httpx.Response:
    return await edge.post(LOG_IN, {"i": {"email": ada.email, "password": PASSWORD}})


async def cookie_of(edge: RunningEdge, ada: Asker) -> str:
    return (await logged_in(edge, ada)).headers["set-cookie"].partition(";")[0]


async def test_a_login_sets_a_cookie_that_scripts_cannot_read(edge: RunningEdge, ada: Asker) -> None:
    cookie = (await logged_in(edge, ada)).headers["set-cookie"]
    port = edge.url.rpartition(":")[2]
    assert re.match(rf"mandate_session_{port}=[\w-]+; HttpOnly; Max-Age=[1-9]\d*; Path=/; SameSite=Lax$", cookie)


async def test_cookies_are_secure_where_the_operator_says_so(production: RunningEdge) -> None:
    ada = await production.person()
    assert "Secure" in (await logged_in(production, ada)).headers["set-cookie"]


async def test_a_cookie_with_the_header_is_a_login(edge: RunningEdge, ada: Asker) -> None:
    cookie = await cookie_of(edge, ada)
    answer = await edge.post("{ me { email } }", cookie=cookie, x_mandate_csrf="1")
    assert answer.json()["data"] == {"me": {"email": ada.email}}


@pytest.mark.parametrize("query", ["{ me { email } }", ORGANIZATION])
async def test_a_cookie_without_the_header_is_refused(edge: RunningEdge, ada: Asker, query: str) -> None:
    answer = await edge.post(query, cookie=await cookie_of(edge, ada))
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["extensions"]["code"] == "CSRF_REFUSED"


async def test_a_cookie_from_another_site_is_refused(edge: RunningEdge, ada: Asker) -> None:
    cookie = await cookie_of(edge, ada)
    for origin, status in (("https://evil.example", 403), ("null", 403), (FRIEND, 200), (edge.url, 200)):
        answer = await edge.post("{ me { email } }", cookie=cookie, x_mandate_csrf="1", origin=origin)
        assert answer.status_code == status, origin


async def test_a_stale_cookie_does_not_keep_one_from_logging_in(edge: RunningEdge, ada: Asker) -> None:
    name = (await cookie_of(edge, ada)).partition("=")[0]
    values = {"i": {"email": ada.email, "password": PASSWORD}}
    for headers in ({"x_mandate_csrf": "1"}, {}):
        answer = await edge.post(LOG_IN, values, cookie=f"{name}=mses_over", **headers)
        assert answer.json()["data"]["logIn"]["userErrors"] == []


async def test_a_bearer_makes_cookies_ignored(edge: RunningEdge, ada: Asker) -> None:
    eve = await edge.person()
    cookie = await cookie_of(edge, ada)
    answer = await edge.post("{ me { email } }", cookie=cookie, authorization=f"Bearer {eve.token}")
    assert answer.json()["data"] == {"me": {"email": eve.email}}


async def test_a_wrong_bearer_is_unauthorized(edge: RunningEdge) -> None:
    answer = await edge.post("{ me { email } }", authorization="Bearer mses_wrong")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "data" not in answer.json()


async def test_logging_out_ends_the_session_and_clears_the_cookie(edge: RunningEdge) -> None:
    eve = await edge.person()
    query = "mutation { logOut { loggedOut userErrors { code } } }"
    answer = await edge.post(query, authorization=f"Bearer {eve.token}")
    assert answer.json()["data"]["logOut"]["loggedOut"]
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await edge.post("{ me { id } }", authorization=f"Bearer {eve.token}")).status_code == 401


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (GRAPHQL_JSON, GRAPHQL_JSON),
        (f"{GRAPHQL_JSON}, application/json;q=0.9", GRAPHQL_JSON),
        (f"application/json, {GRAPHQL_JSON};q=0.5", "application/json"),
    ],
)
async def test_the_answer_comes_as_the_client_likes_it(edge: RunningEdge, accept: str, media: str) -> None:
    answer = await edge.post("{ __typename }", accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{media}; charset=utf-8")
    assert answer.json()["data"] == {"__typename": "Query"}


@pytest.mark.parametrize(
    "query", ["{", "{ nobody }", "query($n: Int!) { me { organizations(first: $n) { nodes { id } } } }"]
)
async def test_a_document_that_is_not_executed_has_no_data(edge: RunningEdge, query: str) -> None:
    precise, plain = [await edge.post(query, accept=accept) for accept in (GRAPHQL_JSON, "application/json")]
    assert (precise.status_code, plain.status_code) == (400, 200)
    assert "data" not in precise.json()
    assert "data" not in plain.json()


async def test_a_client_that_takes_neither_type_is_told_so(edge: RunningEdge) -> None:
    assert (await edge.post("{ __typename }", accept="text/html")).status_code == 406


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'[{"query": "{ __typename }"}]', 400),
        (b"{}", 400),
        (b'{"query": 1}', 400),
        (b'{"query": "{ __typename }", "variables": []}', 400),
        (b'{"query": "{ __typename }", "operationName": {}}', 400),
        (b'{"query": "{ __typename }", "extensions": 1}', 400),
        (b'{"query": "query A { __typename } query B { __typename }"}', 400),
        (b'{"query": "query A { __typename }", "operationName": "B"}', 400),
        (b"[" * 60_000, 400),
        (b'{"query": "{ __typename }", "x": "' + b"x" * 65_536 + b'"}', 413),
    ],
)
async def test_a_body_that_is_no_request_is_refused(edge: RunningEdge, body: bytes, status: int) -> None:
    answer = await edge.client.post(f"{edge.url}/graphql", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", ""]
)
async def test_only_json_is_read(edge: RunningEdge, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    content = b'{"query": "{ __typename }"}'
    assert (await edge.client.post(f"{edge.url}/graphql", content=content, headers=headers)).status_code == 415


async def test_a_get_is_not_allowed(edge: RunningEdge) -> None:
    answer = await edge.client.get(f"{edge.url}/graphql", params={"query": "{ __typename }"})
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


async def test_an_attack_is_refused_over_http(edge: RunningEdge) -> None:
    answer = await edge.post("{" + " ".join(f"a{i}: __typename" for i in range(100)) + "}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["extensions"]["code"] == "TOO_MANY_ALIASES"


async def test_only_listed_origins_may_read_answers(edge: RunningEdge) -> None:
    for origin, allowed in ((FRIEND, FRIEND), ("https://evil.example", None)):
        answer = await edge.post("{ __typename }", origin=origin)
        assert answer.headers.get("access-control-allow-origin") == allowed
        preflight = await edge.client.options(f"{edge.url}/graphql", headers={"origin": origin})
        assert preflight.status_code == (204 if allowed else 403)
        assert preflight.headers.get("access-control-allow-origin") == allowed


async def test_every_answer_carries_the_headers_of_a_careful_server(edge: RunningEdge) -> None:
    for answer in (await edge.post("{ __typename }"), await edge.client.get(f"{edge.url}/nothing")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-mandate-instance"] == "edge-0"


async def test_every_answer_of_graphql_has_a_request_id(edge: RunningEdge) -> None:
    answer = await edge.post("{ nobody }")
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["errors"][0]["extensions"]["requestId"] == answer.headers["x-request-id"]


async def test_production_shows_strangers_no_schema(production: RunningEdge) -> None:
    query = "{ __schema { queryType { name } } }"
    assert (await production.post(query)).json()["errors"][0]["extensions"]["code"] == "INTROSPECTION_OFF"
    assert (await production.client.get(f"{production.url}/schema.graphql")).status_code == 404
    assert "Did you mean" not in (await production.post("{ mee { id } }")).text
    ada = await production.person()
    assert (await ada.ask(query))["__schema"] == {"queryType": {"name": "Query"}}


async def test_development_shows_the_schema(edge: RunningEdge) -> None:
    assert "type Query {" in (await edge.client.get(f"{edge.url}/schema.graphql")).text
    assert "Did you mean" in (await edge.post("{ mee { id } }")).text


async def test_the_first_page_asks_nothing_of_other_hosts(edge: RunningEdge) -> None:
    page = await edge.client.get(f"{edge.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page.text)


async def test_health_version_and_metrics_answer(edge: RunningEdge) -> None:
    assert (await edge.client.get(f"{edge.url}/health")).json() == {"status": "ok"}
    assert (await edge.client.get(f"{edge.url}/version")).json()["service"] == "edge"
    assert "mandate_rpc_handled_total" in (await edge.client.get(f"{edge.url}/metrics")).text
    ready = await edge.client.get(f"{edge.url}/health/ready")
    assert ready.status_code == 200
    assert set(ready.json()["dependencies"].values()) == {"up"}


async def test_a_service_that_is_down_loses_its_part_alone(house: House, addresses: Mapping[str, str]) -> None:
    without_vault = {**addresses, "vault": f"127.0.0.1:{children.free_port()}"}
    async with edge_running(house, without_vault) as edge:
        ada = await edge.person()
        organization_id = await ada.organization()
        query = """query($id: ID!) { organization(id: $id) {
            name wallet { settledMicros } providerCredentials { nodes { id } } policies { nodes { id } } } }"""
        answer = await ada.answer(query, id=organization_id)
        organization = answer["data"]["organization"]
        assert (organization["name"], organization["wallet"]) == ("Acme", {"settledMicros": "0"})
        assert (organization["providerCredentials"], organization["policies"]) == (None, {"nodes": []})
        (error,) = answer["errors"]
        assert error["path"] == ["organization", "providerCredentials"]
        assert (error["extensions"]["service"], error["extensions"]["retryable"]) == ("vault", True)
        ready = await edge.client.get(f"{edge.url}/health/ready")
        assert ready.status_code == 503
        assert [name for name, state in ready.json()["dependencies"].items() if state == "down"] == ["vault"]


async def test_a_service_that_hangs_costs_no_more_than_the_operation_may(
    house: House, addresses: Mapping[str, str]
) -> None:
    async with edge_running(house, addresses, operation_ms=700) as edge:
        ada = await edge.person()
        organization_id = await ada.organization()
        query = "query($id: ID!) { organization(id: $id) { name providerCredentials { nodes { id } } } }"
        blocker = await asyncpg.connect(house.owner_dsn.reveal())
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE vault.credentials IN ACCESS EXCLUSIVE MODE")
                began = asyncio.get_running_loop().time()
                answer = await ada.answer(query, id=organization_id)
                took_seconds = asyncio.get_running_loop().time() - began
        finally:
            await blocker.close()
    assert answer["data"]["organization"] == {"name": "Acme", "providerCredentials": None}
    assert answer["errors"][0]["extensions"]["code"] == "DEADLINE_EXCEEDED"
    assert 0.5 < took_seconds < 3


async def test_without_identity_nothing_is_guessed(house: House, addresses: Mapping[str, str]) -> None:
    async with edge_running(house, {**addresses, "identity": f"127.0.0.1:{children.free_port()}"}) as edge:
        answer = await edge.post("{ me { id } }", authorization="Bearer mses_any")
        assert answer.status_code == 503
        assert answer.json()["errors"][0]["extensions"]["service"] == "identity"


async def test_a_body_that_is_not_what_its_headers_say_is_a_bad_request(edge: RunningEdge) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await edge.client.post(f"{edge.url}/graphql", content=b"not gzip", headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (400, "BAD_REQUEST")
