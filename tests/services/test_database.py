"""What becomes of a statement that somebody else ends, and of an address that the server refuses."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from mesh import db
from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.settings import SettingsError
from mesh.testing import House


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_statement_that_an_operator_ends_is_an_outage_and_no_bug(house: House, function: str) -> None:
    owner = await asyncpg.connect(house.owner_dsn.reveal())
    try:
        async with db.connect(house.dsn("vault"), service="vault") as database:
            sleeping = asyncio.create_task(database.value("SELECT pg_sleep(30)"))
            async with asyncio.timeout(10):
                # Repeated, for it may not have begun yet.
                while not sleeping.done():
                    await owner.execute(
                        f"SELECT {function}(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"  # noqa: S608
                    )
                    await asyncio.sleep(0.02)
            with pytest.raises(Unavailable):
                await sleeping
            assert await database.value("SELECT 1") == 1
    finally:
        await owner.close()


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
async def test_a_lock_that_is_not_to_be_had_is_an_outage(house: House, setting: str) -> None:
    impatient = db.connect(house.dsn("vault"), service="vault", settings={setting: "50"})
    async with impatient as database, database.transaction() as holder:
        await holder.execute("SELECT pg_advisory_xact_lock(4711)")
        with pytest.raises(Unavailable):
            await database.execute("SELECT pg_advisory_lock(4711)")


async def test_a_wrong_password_is_a_setting_that_is_wrong(house: House) -> None:
    head, _, tail = house.dsn("vault").reveal().partition("://mandate_vault:")
    wrong = Secret(f"{head}://mandate_vault:canary@{tail.partition('@')[2]}")
    with pytest.raises(SettingsError, match="MANDATE_VAULT_DATABASE_URL") as error:
        async with db.connect(wrong, service="vault"):
            pass
    assert "canary" not in str(error.value)
