from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ledger_svc.store import wallets
from mesh import ids
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import RunningEdge, backed, edge_running
from tests.services.ledger_running import FLAT_MICROS, tenant
from tests.services.test_ledger_records import TOLD, settled
from tests.services.test_ledger_stream import settle


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


async def test_the_record_of_a_completion_is_shown_to_people(edge: RunningEdge, ledger: RunningLedger) -> None:
    ada = await edge.person()
    organization = await ada.organization()
    await wallets.post(ledger.database, organization, "bought", "purchase", FLAT_MICROS, "", "test", "")
    nodes = (ids.new(kind) for kind in (ids.Kind.AGENT, ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP))
    spender = await replace(await tenant(ledger, 0), path=(organization,)).under(*nodes)
    await settled(ledger, spender, [settle("a", spender.path[-1], **TOLD)])
    query = "query($id: ID!) { organization(id: $id) { usage { nodes { usageSource attempts dialect } } } }"
    found = await ada.ask(query, id=organization)
    assert found["organization"]["usage"]["nodes"] == [
        {"usageSource": "above_bound", "attempts": 3, "dialect": "messages"}
    ]
