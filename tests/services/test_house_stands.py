from __future__ import annotations

import asyncpg
import pytest

from mesh import db
from mesh.testing import House


async def test_a_service_role_may_not_read_another_schema(house: House) -> None:
    async with db.connect(house.dsn("identity"), service="identity") as identity:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await identity.rows("SELECT 1 FROM ledger.schema_migrations LIMIT 1")
