"""Run a program on a leash: as the user it should be, and ended by the kernel when the process that started it dies.

Executed by its path with `python -I -S`, so that no Python code runs between fork and exec of a threaded parent; it
imports nothing of ours. `children.py` writes its command line: parent's pid, death signal, `uid:gid` or `-`, program.
"""

from __future__ import annotations

import os
import sys

PR_SET_PDEATHSIG = 1
PARENT_GONE = 125

if sys.platform == "linux":  # elsewhere the next start finds what a killed parent left
    import ctypes  # before the drop: the new user may not be able to enter Python's own library

    libc = ctypes.CDLL(None)
else:
    libc = None


def main(arguments: list[str]) -> None:
    """Drop to the account, ask for the death signal and become the program."""
    parent, death_signal, account, *argv = arguments
    if account != "-":
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc:
        libc.prctl(PR_SET_PDEATHSIG, int(death_signal))  # after the drop, which clears it
    if os.getppid() != int(parent):  # it died before it could be asked for
        sys.exit(PARENT_GONE)
    os.execv(argv[0], argv)  # noqa: S606  # becoming the program is the point


if __name__ == "__main__":
    main(sys.argv[1:])
