from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from ledger_svc import price_list
from ledger_svc.__main__ import PRICES
from ledger_svc.commits import Commits
from ledger_svc.keys import LedgerKeys
from ledger_svc.price_book import PriceBook
from ledger_svc.service import Ledger
from ledger_svc.store import prices as price_store
from ledger_svc.store import registry, wallets
from mesh import db, ids, testing
from mesh.db import Database
from mesh.ids import Kind


@pytest.fixture(scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[testing.House]:
    async with testing.house(tmp_path_factory.mktemp("house")) as built:
        yield built


@pytest.fixture(scope="session")
def issuer() -> testing.TestIssuer:
    return testing.TestIssuer()


@dataclass(frozen=True)
class RunningLedger:
    """A real ledger, served over mTLS."""

    house: testing.House
    address: str
    database: Database
    ledger: Ledger

    async def tenant(self, credits_micros: int) -> tuple[str, ...]:
        """Register an organization, workspace, group and agent (path version 4) with money in the wallet."""
        kinds = (Kind.ORGANIZATION, Kind.WORKSPACE, Kind.AGENT_GROUP, Kind.AGENT)
        path = tuple(ids.new(kind) for kind in kinds)
        facts = [registry.NodeFact(node, path[0], path[: depth + 1], depth + 1) for depth, node in enumerate(path)]
        await registry.put_nodes(self.database, facts)
        if credits_micros:
            await wallets.post(self.database, path[0], "bought", "purchase", credits_micros, "", "test", "")
        return path


@pytest.fixture(scope="session")
async def ledger(house: testing.House, issuer: testing.TestIssuer) -> AsyncIterator[RunningLedger]:
    async with db.connect(house.dsn("ledger"), service="ledger") as database:
        await price_store.put(database, price_list.parse(PRICES.read_text(), 100))
        await registry.put_keys(database, [(issuer.key_id, issuer.jwk)])
        prices = PriceBook(database)
        await prices.refresh()
        built = Ledger(database, Commits(database), prices)
        async with house.serving("ledger", built.registrations(), LedgerKeys(database), built.resolve) as address:
            yield RunningLedger(house, address, database, built)
