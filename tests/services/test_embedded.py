from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from mesh import children
from mesh.embedded import binaries, postgres, valkey
from mesh.embedded.postgres import Postgres
from mesh.embedded.provision import SERVICES, Provisioned, provision
from mesh.home import Home, HomeError
from mesh.secret import Secret

PASSWORDS = {name: Secret(f"{name}'s @:/ word") for name in SERVICES}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Postgres]:
    """A cluster that does not run yet."""
    home = Home.open(tmp_path_factory.mktemp("server") / "home")
    made = Postgres.of(home, children.free_port(), durable=False)
    await made.prepare()
    yield made
    home.wipe()


@pytest.fixture(scope="module")
async def provisioned(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Provisioned]:
    async with postgres.running(tmp_path_factory.mktemp("provisioned") / "home") as server:
        await provision(server.owner_dsn, PASSWORDS)
        yield await provision(server.owner_dsn, PASSWORDS)  # a second time changes nothing


async def fetch(dsn: Secret, query: str) -> object:
    connection = await asyncpg.connect(dsn.reveal())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_rows_survive_a_killed_server_with_a_client_on_it(server: Postgres) -> None:
    async with children.started(server.argv(), server.ready, account=server.account) as child:
        connection = await asyncpg.connect(server.owner_dsn.reveal())
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS number")
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        connection.terminate()
    await server.prepare()
    async with children.started(server.argv(), server.ready, account=server.account, stop=postgres.STOP_SIGNAL):
        assert await fetch(server.owner_dsn, "SELECT number FROM kept") == 42


async def test_a_socket_may_lie_where_any_sign_is_in_the_path(server: Postgres) -> None:
    with tempfile.TemporaryDirectory(prefix="a b,c'\"") as folder:
        odd = replace(server, sockets=Path(folder))
        await odd.prepare()
        async with children.started(odd.argv(), odd.ready, account=odd.account, stop=postgres.STOP_SIGNAL):
            assert (odd.sockets / f".s.PGSQL.{odd.port}").is_socket()


async def test_a_lock_file_that_names_a_stranger_is_removed(server: Postgres) -> None:
    with subprocess.Popen(  # noqa: ASYNC220  # it only has to be there
        ["/bin/sleep", "60"]
    ) as stranger:
        (server.data / "postmaster.pid").write_text(f"{stranger.pid}\n{server.data}\n")
        await server.prepare()
        stranger.kill()
    assert not (server.data / "postmaster.pid").exists()


async def test_a_lock_file_that_names_a_zombie_is_removed(server: Postgres) -> None:
    zombie = subprocess.Popen(["/bin/true"])  # noqa: ASYNC220  # asyncio would reap it
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # it ends at once
    (server.data / "postmaster.pid").write_text(f"{zombie.pid}\n{server.data}\n")
    await server.prepare()
    zombie.wait()
    assert not (server.data / "postmaster.pid").exists()


async def test_data_that_is_gone_is_not_silently_made_anew(server: Postgres) -> None:
    server.data.rename(server.data.with_name("elsewhere"))
    with pytest.raises(HomeError, match="is gone"):
        await server.prepare()
    server.data.with_name("elsewhere").rename(server.data)


async def test_a_cluster_is_made_anew_where_its_making_was_killed(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    server = Postgres.of(home, children.free_port(), durable=False)
    half = server.data.with_name("postgres.new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    await server.prepare()
    assert (server.data / "global" / "pg_control").exists()
    home.wipe()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
async def test_root_may_keep_its_home_where_no_other_user_can_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with postgres.running(closed / "home") as server:
        assert await fetch(server.owner_dsn, "SELECT 1") == 1
        assert server.data.stat().st_uid != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root copies the programs")
def test_copied_programs_that_another_user_could_change_are_refused(tmp_path: Path) -> None:
    wheel = binaries.postgres_wheel()
    programs = binaries.copied(wheel, tmp_path) / "bin"
    assert subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True).stdout
    (programs / "initdb").chmod(0o777)
    with pytest.raises(HomeError, match="another user"):
        binaries.copied(wheel, tmp_path)


async def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from mesh.embedded import postgres
async def main():
    async with postgres.running(Path({str(tmp_path / "home")!r})) as server:
        print(server.data, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:  # noqa: ASYNC220  # killed below
        assert parent.stdout is not None
        data = Path((await asyncio.to_thread(parent.stdout.readline)).strip())
        pid = int((data / "postmaster.pid").read_text().split()[0])
        parent.kill()
    async with asyncio.timeout(10):
        while children.is_running(pid):  # noqa: ASYNC110  # another process sets no event
            await asyncio.sleep(0.02)
    home = Home.existing(tmp_path / "home")
    assert home is not None
    home.wipe()


async def test_each_service_has_a_role_that_owns_nothing(provisioned: Provisioned) -> None:
    for name, dsn in provisioned.services.items():
        assert await fetch(dsn, "SELECT current_user") == f"mandate_{name}"
        assert (
            await fetch(dsn, "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = user")
            is False
        )
        for forbidden in (
            "CREATE TABLE public.t ()",
            "CREATE TEMP TABLE t ()",
            "CREATE SCHEMA s",
            "SET ROLE mandate_owner",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await fetch(dsn, forbidden)


async def test_an_owner_who_is_no_superuser_is_enough(provisioned: Provisioned) -> None:
    await fetch(provisioned.owner_dsn, "CREATE ROLE landlord LOGIN CREATEROLE CREATEDB PASSWORD 'rent'")
    for name in ("mandate_owner", *(f"mandate_{service}" for service in SERVICES)):
        await fetch(provisioned.owner_dsn, f"GRANT {name} TO landlord WITH ADMIN TRUE")
    place = provisioned.owner_dsn.reveal().rpartition("@")[2].partition("/")[0]
    await fetch(provisioned.owner_dsn, "CREATE DATABASE let OWNER landlord")
    for database in ("let", "let", "new"):
        found = await provision(Secret(f"postgresql://landlord:rent@{place}/{database}"), PASSWORDS)
        assert await fetch(found.services["vault"], "SELECT current_database()") == database


async def test_a_wrong_password_is_refused(provisioned: Provisioned) -> None:
    dsn = provisioned.services["vault"].reveal().replace("mandate_vault", "mandate_ledger")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(Secret(dsn), "SELECT 1")


async def test_the_database_is_utf8_checksummed_and_sorts_the_same_everywhere(provisioned: Provisioned) -> None:
    query = """SELECT concat_ws(' ', pg_encoding_to_char(encoding), datlocprovider, datlocale,
               current_setting('data_checksums')) FROM pg_database WHERE datname = 'mandate'"""
    assert await fetch(provisioned.owner_dsn, query) == "UTF8 b C.UTF-8 on"


async def test_valkey_wants_its_password_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    async with valkey.running(tmp_path / "home", keep=True) as server:
        assert await answers(server, b"PING") == b"-NOAUTH Authentication required.\r\n"
        assert await answers(server, auth(server) + b"SET kept 1") == b"+OK\r\n"
    async with valkey.running(tmp_path / "home") as server:
        assert await answers(server, auth(server) + b"INCR kept") == b":2\r\n"


def auth(server: valkey.Valkey) -> bytes:
    return f"AUTH {server.password.reveal()}\r\n".encode()


async def answers(server: valkey.Valkey, commands: bytes) -> bytes:
    """Return the answer to the last command."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(commands + b"\r\n")
    found = [await reader.readline() for _ in range(commands.count(b"\r\n") + 1)]
    writer.close()
    await writer.wait_closed()
    return found[-1]
