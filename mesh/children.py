"""Processes seen from outside: leashed commands, who is alive, and a child that lives as long as a `with` block.

Restarts and ordering are in `supervisor.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import leash

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

START_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
SHARED_MEMORY_LINE = 6  # of postmaster.pid: "key id" of the segment that every backend is attached to
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the machine that a program runs as."""

    uid: int
    gid: int


def leashed(argv: tuple[str, ...], account: Account | None, death_signal: signal.Signals) -> list[str]:
    """Return the command that runs `argv` as `account`; `death_signal` ends it when this process dies."""
    user = f"{account.uid}:{account.gid}" if account else "-"
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(int(death_signal)), user, *argv]


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines_of(path: Path) -> list[str]:
    """Return a small file's lines, none when it is missing or empty."""
    try:
        return [line.strip() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []


def is_running(pid: int, *arguments: str) -> bool:
    """Say whether `pid` runs (a zombie does not) with all of `arguments` in its command."""
    if pid <= 0:
        return False
    if (PROC / "self").exists():
        try:
            state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
            command = (PROC / str(pid) / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX" and set(arguments) <= set(command)
    listed = subprocess.run(  # noqa: S603
        ["/bin/ps", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(listed) and not listed.startswith("Z") and all(argument in listed for argument in arguments)


def attached(lock: list[str]) -> int:
    """Count the processes attached to the shared memory that PostgreSQL's lock file names; 0 where it can't be told."""
    parts = lock[SHARED_MEMORY_LINE].split() if len(lock) > SHARED_MEMORY_LINE else []
    table = PROC / "sysvipc" / "shm"
    if sys.platform != "linux" or len(parts) != 2 or not table.exists():  # noqa: PLR2004
        return 0
    header, *rows = (line.split() for line in table.read_text().splitlines())
    found = [dict(zip(header, row, strict=False)) for row in rows]
    return sum(int(row["nattch"]) for row in found if (row["key"], row["shmid"]) == (parts[0], parts[1]))


@contextlib.asynccontextmanager
async def started(
    argv: tuple[str, ...],
    ready: Callable[[], Awaitable[bool]],
    *,
    account: Account | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run `argv` until the block ends; raise RuntimeError with its last output when it doesn't become ready."""
    child = await asyncio.create_subprocess_exec(
        *leashed(argv, account, signal.SIGKILL),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
    )
    tail = bytearray()
    drain = asyncio.create_task(_drain(child, tail))
    try:
        await _await_ready(child, ready, tail)
        yield child
    finally:
        await _end(child, stop)
        await drain


async def _await_ready(
    child: asyncio.subprocess.Process, ready: Callable[[], Awaitable[bool]], tail: bytearray
) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not await ready():
        if child.returncode is not None or asyncio.get_running_loop().time() > deadline:
            raise RuntimeError(f"did not become ready: {tail.decode(errors='replace')}")
        await asyncio.sleep(POLL_SECONDS)


async def _drain(child: asyncio.subprocess.Process, tail: bytearray) -> None:
    """Read the child's output, so that it never blocks on a full pipe, and keep its last 2,000 bytes."""
    assert child.stdout is not None  # noqa: S101  # it was asked for above
    while chunk := await child.stdout.read(65536):
        tail += chunk
        del tail[:-2000]


async def _end(child: asyncio.subprocess.Process, stop: signal.Signals) -> None:
    for sign in (stop, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()
                return
