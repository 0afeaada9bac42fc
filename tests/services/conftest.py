from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.testing import TestIssuer
from tests.services.ledger_processes import Ledgers, two_ledgers


@pytest.fixture(scope="session")
async def ledgers(tmp_path_factory: pytest.TempPathFactory, issuer: TestIssuer) -> AsyncIterator[Ledgers]:
    async with two_ledgers(tmp_path_factory.mktemp("ledgers"), issuer) as running:
        yield running
