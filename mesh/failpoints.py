"""Named places in the work at which a test has a process killed, so that it meets each crash that there can be.

`MANDATE_FAILPOINT_FILE` names a file that a test writes and takes away: `<point> <pid>`, pid 0 for whoever reaches the
point. The process that first reaches it claims the file, notes when, and sends SIGKILL. Whoever may set that can kill
our processes without it; all the same production refuses to start so. Where it is unset, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from mesh.clock import monotonic_ms
from mesh.settings import Runtime, SettingsError

CLAIMED, REACHED = ".claimed", ".reached"

_orders: list[Path] = []  # one file, or none


def arm(runtime: Runtime) -> None:
    """Heed the file that the settings name, if any; SettingsError where lives depend on this process."""
    _orders.clear()
    if runtime.failpoint_file is None:
        return
    if runtime.environment == "production":
        raise SettingsError("MANDATE_FAILPOINT_FILE", "has processes killed for tests, which production does not take")
    _orders.append(runtime.failpoint_file)


def reach(point: str) -> None:
    """Say that the work has come to a point; where a test waits for it, a process dies before this returns."""
    if _orders:
        _reached(_orders[0], point)


def _reached(orders: Path, point: str) -> None:
    claimed = orders.with_name(orders.name + CLAIMED)
    try:
        wanted, pid = orders.read_text().split()
        if wanted != point:
            return
        orders.rename(claimed)
    except FileNotFoundError:  # nothing is wanted, or another has claimed it
        return
    claimed.write_text(str(monotonic_ms()))
    claimed.rename(orders.with_name(orders.name + REACHED))
    os.kill(int(pid) or os.getpid(), signal.SIGKILL)
