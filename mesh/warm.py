"""Import a service, then wait for the word to run it: imports of all services overlap while their order stays.

Run as `python -m mesh.warm <package>`; the word is `go` on standard input, an end without it: nobody wants it.
"""

from __future__ import annotations

import importlib
import runpy
import sys

WORD = b"go"


def main(package: str) -> None:
    """Import what `python -m package` imports, wait, and run it."""
    importlib.import_module(f"{package}.__main__")
    del sys.modules[f"{package}.__main__"]  # run anew below, under its other name; what it imported stays
    if sys.stdin.buffer.read(len(WORD)) != WORD:
        return
    sys.argv = [package]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
