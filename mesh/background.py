"""Start a supervisor in the background, and stop one by the home that it holds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from mesh import status
from mesh.children import is_running
from mesh.console import LOG_FILE
from mesh.home import Home, HomeError
from mesh.supervisor import StartError

if TYPE_CHECKING:
    from mesh.status import MeshStatus

START_SECONDS = 300.0
STOP_SECONDS = 300.0
POLL_SECONDS = 0.05
TAIL_LINES = 25


def detach(home: Home, arguments: list[str]) -> MeshStatus:
    """Run `mandate` with `arguments` in a session of its own and return once all is ready; else raise StartError."""
    if holder := home.holder():
        raise HomeError(f"{home.path}: is in use by process {holder} (mandate status, mandate down)")
    output = home.logs / "detached.out"  # what it says before it has its log: a refusal to start, or a crash
    with output.open("wb") as file:
        child = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-P", "-m", "mesh", *arguments],  # -P: nothing is imported from where we stand
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None:
        found = status.recorded(home)
        if found and found.pid == child.pid and found.state == "ready":
            return found
        if time.monotonic() > deadline:
            child.terminate()
            raise StartError(f"was not ready within {START_SECONDS:.0f} s; see {home.logs / LOG_FILE}")
        time.sleep(POLL_SECONDS)
    last = output.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:]
    raise StartError(
        "\n".join(last).removeprefix("mandate: ") or f"ended with {child.returncode}; see {home.logs / LOG_FILE}"
    )


def stop(home: Home) -> bool:
    """Stop the mesh of `home` and return once its processes are gone; False when none ran."""
    told: int | None = None
    deadline = time.monotonic() + STOP_SECONDS
    while (holder := home.holder()) is not None or _leftovers(home):
        if holder and told is None:  # 0: it took the lock just now and has not said yet who it is
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGTERM)
            told = holder
        elif holder and holder != told:
            return True  # the one that was to stop is gone, and another runs already
        if time.monotonic() > deadline:
            raise StartError(f"process {holder} did not stop within {STOP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    status.clear(home)
    return told is not None


def _leftovers(home: Home) -> bool:
    """Say whether a process runs that a killed supervisor recorded; another user of its pid is told by its session."""
    found = status.recorded(home)
    pids = [process.pid for process in found.processes if process.pid] if found else []
    return any(is_running(pid) and _leads_session(pid) for pid in pids)


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
