from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh import testing


@pytest.fixture(scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[testing.House]:
    async with testing.house(tmp_path_factory.mktemp("house")) as built:
        yield built


@pytest.fixture(scope="session")
def issuer() -> testing.TestIssuer:
    return testing.TestIssuer()
