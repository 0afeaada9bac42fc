from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ledger_svc.store import grants
from mesh import ids
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import RunningEdge, backed, edge_running


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


async def test_an_organizations_credit_grants_are_listed(edge: RunningEdge, ledger: RunningLedger) -> None:
    ada = await edge.person()
    organization = await ada.organization()
    for number in (1, 2):
        new = grants.NewGrant(ids.new(ids.Kind.GRANT), f"g{number}", number, 50, None, "promotional", "welcome")
        assert (await grants.make(ledger.database, organization, new, "test")).status == grants.MADE
    query = """query($id: ID!, $after: String) { organization(id: $id) {
        creditGrants(first: 1, after: $after) { pageInfo { endCursor hasNextPage } nodes {
          category status priority amountMicros remainingMicros burnedMicros brokenMicros reason expireTime } } } }"""
    first = (await ada.ask(query, id=organization))["organization"]["creditGrants"]
    second = (await ada.ask(query, id=organization, after=first["pageInfo"]["endCursor"]))["organization"][
        "creditGrants"
    ]
    assert (first["pageInfo"]["hasNextPage"], second["pageInfo"]["hasNextPage"]) == (True, False)
    assert first["nodes"] == [
        {
            "category": "PROMOTIONAL",
            "status": "ACTIVE",
            "priority": 50,
            "amountMicros": "1",
            "remainingMicros": "1",
            "burnedMicros": "0",
            "brokenMicros": "0",
            "reason": "welcome",
            "expireTime": None,
        }
    ]
    assert second["nodes"][0]["amountMicros"] == "2"
