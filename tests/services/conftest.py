from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.testing import House, TestIssuer
from tests.conftest import RunningLedger
from tests.services.gateway_running import Mesh, Upstream, mesh_running, upstream_running
from tests.services.ledger_processes import Ledgers, two_ledgers
from tests.services.replays_running import Pair, replays_running


@pytest.fixture(scope="session")
async def ledgers(tmp_path_factory: pytest.TempPathFactory, issuer: TestIssuer) -> AsyncIterator[Ledgers]:
    async with two_ledgers(tmp_path_factory.mktemp("ledgers"), issuer) as running:
        yield running


@pytest.fixture(scope="module")
async def mesh(house: House, ledger: RunningLedger) -> AsyncIterator[Mesh]:
    async with mesh_running(house, ledger) as running:
        yield running


@pytest.fixture(scope="module")
async def upstream(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Upstream]:
    async with upstream_running(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture
async def pair(house: House) -> AsyncIterator[Pair]:
    async with replays_running(house) as running:
        yield running
