"""PostgreSQL 18 as a child process: its cluster on disk, its command, and `running()` for tests.

Mandate's database and roles are made by `provision.py`; restarts are the supervisor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg

from mesh import children
from mesh.embedded import binaries
from mesh.home import Home, HomeError
from mesh.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mesh.children import Account

SUPERUSER = "postgres"
STOP_SIGNAL = signal.SIGINT  # "fast": open transactions are rolled back
LEFTOVER_SECONDS = 30.0
POLL_SECONDS = 0.05
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "fsync": "on",
    "huge_pages": "off",
    "jit": "off",  # our statements are short: planning for it costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "[%p] ",
    "cluster_name": "mandate",
}
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class Postgres:
    """One cluster and how to run it; it is reached on 127.0.0.1 and by a socket, always with a password."""

    programs: Path
    data: Path
    marker: Path  # stands in the home once the cluster was made: data may lie elsewhere, and must not be made anew
    sockets: Path
    port: int
    password: Secret
    account: Account | None
    durable: bool = True

    @classmethod
    def of(cls, home: Home, port: int, *, durable: bool = True) -> Postgres:
        """Describe the cluster of `home`; only the programs are made runnable, where they are not."""
        account = binaries.unprivileged()
        return cls(
            programs=binaries.postgres(account),
            data=home.data / "postgres",
            marker=home.path / "postgres.made",
            sockets=home.sockets,
            port=port,
            password=home.secret(SUPERUSER),
            account=account,
            durable=durable,
        )

    @property
    def owner_dsn(self) -> Secret:
        """Address of the maintenance database, as the superuser."""
        return owner_dsn(self.port, self.password)

    def argv(self) -> tuple[str, ...]:
        """Return the server's command."""
        settings = {**SETTINGS, "port": str(self.port), "unix_socket_directories": _quoted(self.sockets)}
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}  # survives a kill, not a power cut
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return (str(self.programs / "postgres"), "-D", str(self.data), *options)

    async def prepare(self) -> None:
        """Make the cluster on first use and clear what a killed server left; raise HomeError when another runs it."""
        await asyncio.to_thread(self._prepare_folders)
        if not (self.data / "PG_VERSION").exists():
            if self.marker.exists():
                raise HomeError(
                    f"the data of this home is gone from {self.data}; put it back, or `mandate down --wipe`"
                )
            await self._initialize()
        self.marker.touch(mode=0o600)
        await self._await_leftovers()

    async def ready(self) -> bool:
        """Say whether the server answers a query."""
        try:
            connection = await asyncpg.connect(self.owner_dsn.reveal(), timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        try:
            return await connection.fetchval("SELECT 1") == 1
        finally:
            await connection.close()

    def _prepare_folders(self) -> None:
        for folder in (self.data.parent, self.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.account:
            self.data.parent.parent.chmod(0o711)  # root's own folder: to be passed through, not listed
            for folder in (self.data.parent, self.sockets):
                os.chown(folder, self.account.uid, self.account.gid)

    async def _initialize(self) -> None:
        """Run initdb beside the final place and move its result there, so that a killed one leaves no half cluster."""
        fresh = self.data.with_name("postgres.new")
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        argv = [
            str(self.programs / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums",
            "--no-instructions", *([] if self.durable else ["--no-sync"]),
        ]  # fmt: skip
        code, output = await asyncio.to_thread(self._run_initdb, argv)
        if code != 0:
            raise HomeError(f"PostgreSQL's initdb failed ({code}): {output.strip()[-500:]}")
        fresh.rename(self.data)

    def _run_initdb(self, argv: list[str]) -> tuple[int, str]:
        reading, writing = os.pipe()
        try:
            os.write(writing, self.password.reveal().encode() + b"\n")
            os.close(writing)
            if self.account:
                os.fchown(reading, self.account.uid, self.account.gid)
            command = children.leashed((*argv, f"--pwfile=/dev/fd/{reading}"), self.account, signal.SIGKILL)
            done = subprocess.run(  # noqa: S603  # our own program with our own arguments
                command, pass_fds=[reading], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd="/", check=False, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(reading)
        return done.returncode, done.stdout.decode(errors="replace")

    async def _await_leftovers(self) -> None:
        """Wait until no process of an earlier server is left, then remove the lock file that names it.

        A server refuses to start while its lock file names any process, even a zombie that nobody reaps or a stranger
        with the same pid; and while orphaned backends still hold the earlier server's memory.
        """
        lock = self.data / "postmaster.pid"
        deadline = asyncio.get_running_loop().time() + LEFTOVER_SECONDS
        while lines := children.lines_of(lock):
            pid = int(lines[0]) if lines[0].isdigit() else 0
            running = children.is_running(pid, "-D", str(self.data))
            if not running and not children.attached(lines):
                lock.unlink(missing_ok=True)
                return
            if asyncio.get_running_loop().time() > deadline:
                what = f"already runs as process {pid}" if running else "left backends that do not end"
                raise HomeError(f"PostgreSQL of {self.data} {what}")
            await asyncio.sleep(POLL_SECONDS)


def owner_dsn(port: int, password: Secret) -> Secret:
    """Return the address of the maintenance database of an embedded cluster, as its superuser."""
    return Secret(f"postgresql://{SUPERUSER}:{quote(password.reveal(), safe='')}@127.0.0.1:{port}/{SUPERUSER}")


def _quoted(path: Path) -> str:
    """Return a folder as one name of a list, whatever signs are in it."""
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'


@contextlib.asynccontextmanager
async def running(
    directory: Path, port: int = 0, *, keep: bool = False, durable: bool = False
) -> AsyncGenerator[Postgres]:
    """Run a server for a test, quick unless `durable`, its home in `directory`; removed afterwards unless `keep`."""
    home = Home.open(directory)
    server = Postgres.of(home, port or children.free_port(), durable=durable)
    try:
        await server.prepare()
        async with children.started(server.argv(), server.ready, account=server.account, stop=STOP_SIGNAL):
            yield server
    finally:
        if not keep:
            await asyncio.to_thread(home.wipe)
