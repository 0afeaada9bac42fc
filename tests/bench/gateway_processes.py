"""Processes that the gateway's benchmark starts or looks at: on which core they run, and what they take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

MEASURED_CORE, OTHERS_CORE = 1, 0
PROC = Path("/proc")
RSS = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)
TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 180, 10, 0.05


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, with every thread that it has; what it starts later stays there too."""
    for thread in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread ended
            os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU that processes and their children have taken, those included that ended."""
    taken: dict[int, tuple[int, int, int]] = {}  # by id: parent, own ticks, ticks of ended children
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            fields = stat.read_text().rpartition(")")[2].split()
            user, system, ended_user, ended_system = (int(ticks) for ticks in fields[11:15])
            taken[int(stat.parent.name)] = int(fields[1]), user + system, ended_user + ended_system
    family = dict.fromkeys(pids.values(), 0)
    for pid, (parent, own, ended) in taken.items():
        if pid in family:
            family[pid] += own + ended
        if parent in family:
            family[parent] += own
    return {name: family[pid] / TICKS for name, pid in pids.items()}


def rss_mb(pid: int) -> float:
    """Return the resident memory of one process."""
    found = RSS.search((PROC / str(pid) / "status").read_text())
    assert found, pid
    return int(found[1]) / 1024


def stolen() -> tuple[int, int]:
    """Return the ticks that the host kept from this machine's cores, and all of them."""
    ticks = [int(count) for count in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


@asynccontextmanager
async def process(
    argv: Sequence[str], port: int, core: int, log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> AsyncGenerator[int]:
    """Run a program on one core during the block; it is there when its port answers. Yield its id."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(
            *argv, env=dict(environment), cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        pin(child.pid, core)
        await _listening(child, port, log)
        yield child.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _listening(child: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert child.returncode is None, _end_of(log)
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(POLL_SECONDS)
