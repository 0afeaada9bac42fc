from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ledger_svc.store import registry, wallets
from mesh import ids
from mesh.ids import Kind
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running
from tests.services.ledger_running import tenant

BILL = """bill { model price { id sourceDate tiers { aboveTokens } } aboveTokens requestMicros costMicros chargedMicros
    overageMicros breachMicros matches lines { tokenClass tokens microsPerMtok amountPicos } }"""


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


async def spend(ledger: RunningLedger, organization_id: str) -> None:
    """Charge three tokens of output to an agent of the organization, under the id `spent`."""
    path = (organization_id, *(ids.new(kind) for kind in (Kind.WORKSPACE, Kind.AGENT_GROUP, Kind.AGENT)))
    facts = [registry.NodeFact(node, path[0], path[: depth + 1], depth + 1) for depth, node in enumerate(path)]
    await registry.put_nodes(ledger.database, facts)
    await wallets.post(ledger.database, organization_id, "bought", "purchase", 10_000, "", "test", "")
    spender = replace(await tenant(ledger, 0), path=path)
    await spender.place("spent", 3)
    await spender.settle("spent", 3)


async def test_a_bill_is_read_with_its_usage_and_by_the_id_of_the_completion(ledger: RunningLedger, ada: Asker) -> None:
    organization_id = await ada.organization()
    await spend(ledger, organization_id)
    query = f"query($id: ID!) {{ organization(id: $id) {{ usage {{ nodes {{ requestId {BILL} }} }} }} }}"
    row = (await ada.ask(query, id=organization_id))["organization"]["usage"]["nodes"][0]
    price = ledger.ledger.prices.in_force("mock", "mock-model")
    assert price
    assert row == {
        "requestId": "spent",
        "bill": {
            "model": "mock-model",
            "price": {"id": price.id, "sourceDate": price.source_date, "tiers": []},
            "aboveTokens": 0,
            "requestMicros": "0",
            "costMicros": "600",
            "chargedMicros": "600",
            "overageMicros": "0",
            "breachMicros": "0",
            "matches": True,
            "lines": [
                {"tokenClass": "OUTPUT", "tokens": 3, "microsPerMtok": "200000000", "amountPicos": "600000000"},
            ],
        },
    }
    by_id = BILL.replace("bill {", "bill(requestId: $request) {", 1)
    query = f"query($id: ID!, $request: String!) {{ organization(id: $id) {{ {by_id} }} }}"
    found = await ada.ask(query, id=organization_id, request="spent")
    assert found["organization"]["bill"] == row["bill"]
    missing = await ada.answer(query, id=organization_id, request="none")
    assert missing["data"]["organization"]["bill"] is None
    assert missing["errors"][0]["extensions"]["code"] == "USAGE_NOT_FOUND"


async def test_the_prices_in_force_are_paged_through_by_those_who_are_logged_in(edge: RunningEdge, ada: Asker) -> None:
    query = """query($first: Int!, $after: String) { prices(first: $first, after: $after) {
        nodes { provider model longerUnpriced tiers { aboveTokens inputMicrosPerMtok } }
        pageInfo { endCursor hasNextPage } } }"""
    whole = (await ada.ask(query, first=100))["prices"]
    assert whole["pageInfo"]["hasNextPage"] is False
    found: list[dict[str, object]] = []
    after: str | None = None
    for _ in range(len(whole["nodes"])):
        page = (await ada.ask(query, first=5, after=after))["prices"]
        found += page["nodes"]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert found == whole["nodes"]
    sol = next(price for price in found if price["model"] == "gpt-6-sol")
    assert sol["tiers"] == [{"aboveTokens": 272_000, "inputMicrosPerMtok": "400000000"}]
    assert [price["longerUnpriced"] for price in found if price["model"] in {"gpt-6.2-sol", "gpt-6-sol"}] == [
        False,
        True,
    ]
    nobody = (await edge.post("{ prices { nodes { id } } }")).json()
    assert nobody["data"] == {"prices": None}
    assert nobody["errors"][0]["extensions"]["code"] == "NOT_LOGGED_IN"
