from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from mesh import migrations
from mesh.migrations import MigrationError, migrate
from mesh.testing import House


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service of nothing but migrations, on the import path for one test."""
    name = f"m{secrets.token_hex(4)}"
    folder = tmp_path / f"{name}_svc"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""For one test."""\n')
    (folder / "migrations" / "0001_first.sql").write_text("CREATE TABLE first (id int);")
    (folder / "migrations" / "0002_index.sql").write_text(
        "-- no-transaction\nCREATE INDEX CONCURRENTLY first_id ON first (id);\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(f"{name}_svc", None)


def folder_of(service: str) -> Path:
    return (
        Path(next(path for path in sys.path if (Path(path) / f"{service}_svc").exists())) / f"{service}_svc/migrations"
    )


async def test_of_many_starters_one_applies_and_the_others_wait(house: House, service: str) -> None:
    applied = await asyncio.gather(*(migrate(house.owner_dsn, service) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, 2]
    connection = await asyncpg.connect(house.owner_dsn.reveal())
    try:
        assert await connection.fetchval(f"SELECT count(*) FROM {service}.first") == 0  # noqa: S608
    finally:
        await connection.close()


async def test_a_file_that_was_changed_after_it_ran_is_refused(house: House, service: str) -> None:
    await migrate(house.owner_dsn, service)
    (folder_of(service) / "0001_first.sql").write_text("CREATE TABLE first (id bigint);")
    with pytest.raises(MigrationError, match=r"0001_first\.sql: was changed"):
        await migrate(house.owner_dsn, service)


async def test_a_failing_file_leaves_nothing_and_is_named(house: House, service: str) -> None:
    (folder_of(service) / "0003_broken.sql").write_text("CREATE TABLE second (id int); SELECT nothing;")
    with pytest.raises(MigrationError, match=r"0003_broken\.sql"):
        await migrate(house.owner_dsn, service)
    (folder_of(service) / "0003_broken.sql").write_text("CREATE TABLE second (id int);")
    assert await migrate(house.owner_dsn, service) == ["0003_broken.sql"]


@pytest.mark.parametrize("name", ["1_short.sql", "0003-dash.sql", "0002_twice.sql"])
def test_a_name_out_of_order_is_refused(service: str, name: str) -> None:
    (folder_of(service) / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=name):
        migrations.migrations_of(service)
