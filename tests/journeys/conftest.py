from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.running import Mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One whole mesh with two gateway processes, shared by the journeys that do it no harm."""
    folder = tmp_path_factory.mktemp("mesh")
    built = Mesh(folder / "home", extra={"MANDATE_MOCK_BILL_FILE": str(folder / "bill.jsonl")})
    with built.up("--replicas", "gateway=2"):
        yield built
