from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running

MOCK = {"provider": "mock", "model": "mock-model"}
UNPRICED = {"provider": "openai", "model": "llama-4", "tier": 1, "contextTokens": 32_000, "outputTokensMax": 4_000}
ROUTE = """route { id organizationId alias removeTime
    targets { provider model weight tier contextTokens outputTokensMax } }"""


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


def told(**target: Any) -> dict[str, Any]:
    """Return a target as it is told: defaults filled in."""
    return {"weight": 1, "tier": 0, "contextTokens": None, "outputTokensMax": None} | target


async def test_a_route_is_created_updated_and_removed(ada: Asker) -> None:
    organization_id = await ada.organization()
    made = await ada.made(
        "createRoute", ROUTE, organizationId=organization_id, alias="fast", targets=[MOCK | {"weight": 0}, UNPRICED]
    )
    route = made["route"]
    assert (route["organizationId"], route["alias"], route["removeTime"]) == (organization_id, "fast", None)
    assert route["targets"] == [told(**MOCK, weight=0), told(**UNPRICED)]
    renamed = (await ada.made("updateRoute", ROUTE, id=route["id"], alias="faster"))["route"]
    assert renamed == route | {"alias": "faster"}
    rerouted = (await ada.made("updateRoute", ROUTE, id=route["id"], targets=[MOCK]))["route"]
    assert rerouted == renamed | {"targets": [told(**MOCK)]}
    assert (await ada.made("removeRoute", ROUTE, id=route["id"]))["route"]["removeTime"]


async def test_routes_of_an_organization_have_pages(ada: Asker) -> None:
    organization_id = await ada.organization()
    for alias in ("one", "two", "three"):
        await ada.made("createRoute", ROUTE, organizationId=organization_id, alias=alias, targets=[MOCK])
    query = """query($id: ID!, $after: String) { organization(id: $id) { routes(first: 2, after: $after) {
        nodes { alias targets { model } } pageInfo { endCursor hasNextPage } } } }"""
    first = (await ada.ask(query, id=organization_id))["organization"]["routes"]
    cursor = first["pageInfo"]["endCursor"]
    second = (await ada.ask(query, id=organization_id, after=cursor))["organization"]["routes"]
    assert [node["alias"] for node in [*first["nodes"], *second["nodes"]]] == ["one", "two", "three"]
    assert second["pageInfo"] == {"endCursor": None, "hasNextPage": False}


@pytest.mark.parametrize(
    ("values", "code", "field"),
    [
        ({"alias": "mock-model"}, "ALIAS_NAMES_MODEL", "alias"),
        ({"alias": "a b"}, "INVALID_FIELD", "alias"),
        ({"targets": []}, "INVALID_FIELD", "targets"),
        ({"targets": [MOCK | {"weight": 1_001}]}, "INVALID_FIELD", "weight"),
        ({"targets": [{"provider": "openai", "model": "llama-4"}]}, "MODEL_NOT_PRICED", "model"),
        ({"targets": [UNPRICED | {"outputTokensMax": None}]}, "INVALID_FIELD", "outputTokensMax"),
    ],
)
async def test_a_route_that_is_refused_says_why(ada: Asker, values: dict[str, Any], code: str, field: str) -> None:
    given = {"organizationId": await ada.organization(), "alias": "fast", "targets": [MOCK]} | values
    (error,) = (await ada.payload("createRoute", ROUTE, **given))["userErrors"]
    assert (error["code"], error["field"]) == (code, field)


async def test_an_update_of_nothing_is_refused(ada: Asker) -> None:
    organization_id = await ada.organization()
    made = await ada.made("createRoute", ROUTE, organizationId=organization_id, alias="fast", targets=[MOCK])
    (error,) = (await ada.payload("updateRoute", ROUTE, id=made["route"]["id"]))["userErrors"]
    assert (error["code"], error["field"]) == ("INVALID_FIELD", "updateMask")


async def test_another_persons_route_looks_like_none(edge: RunningEdge, ada: Asker) -> None:
    organization_id = await ada.organization()
    made = await ada.made("createRoute", ROUTE, organizationId=organization_id, alias="fast", targets=[MOCK])
    eve = await edge.person()
    for name, values in (("updateRoute", {"alias": "mine"}), ("removeRoute", {})):
        (error,) = (await eve.payload(name, ROUTE, id=made["route"]["id"], **values))["userErrors"]
        assert (error["code"], error["field"]) == ("NOT_FOUND", "id")
