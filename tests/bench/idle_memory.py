"""Measure what an idle mesh takes: proportional set size (PSS) of every process, and how long a warm start takes.

Run it as `make bench-memory`. It starts a mesh of its own in a temporary home and stops it again.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from tests.journeys.running import Mesh

LIMIT_MB = 450
LIMIT_WARM_SECONDS = 8
IDLE_SECONDS = 20
PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def main() -> int:
    """Print the figures; 1 when one is above its limit."""
    with tempfile.TemporaryDirectory() as folder:
        mesh = Mesh(Path(folder) / "home")
        cold_seconds = started(mesh)
        mesh.run("down")
        warm_seconds = started(mesh)
        try:
            time.sleep(IDLE_SECONDS)
            processes = {f"{p['name']}.{p['replica']}": int(p["pid"]) for p in mesh.status()["processes"]}
            processes["supervisor"] = int((mesh.home / "lock").read_text())
            figures = {name: pss_mb(pid, family=name != "supervisor") for name, pid in processes.items()}
        finally:
            mesh.run("down", "--wipe")
    for name, figure in figures.items():
        print(f"{name:<12} {figure:6.1f} MB")
    total = sum(figures.values())
    print(f"{'total':<12} {total:6.1f} MB (limit {LIMIT_MB})")
    print(f"ready after {cold_seconds:.1f} s the first time, {warm_seconds:.1f} s warm (limit {LIMIT_WARM_SECONDS})")
    return 0 if total <= LIMIT_MB and warm_seconds <= LIMIT_WARM_SECONDS else 1


def started(mesh: Mesh) -> float:
    """Start the mesh and return how long that took, the command's own start included."""
    began = time.monotonic()
    done = mesh.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def pss_mb(pid: int, *, family: bool) -> float:
    """Return the PSS of a process, of its children too when asked; one that is gone counts nothing."""
    try:
        own = PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except FileNotFoundError:
        return 0.0
    below = sum(pss_mb(child, family=True) for child in children_of(pid)) if family else 0.0
    return (int(own[1]) / 1024 if own else 0.0) + below


def children_of(pid: int) -> list[int]:
    """List the processes whose parent is `pid`."""
    found: list[int] = []
    for name in (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            parent = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except FileNotFoundError:
            continue
        if parent == pid:
            found.append(int(name))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
