"""Where the supervisor's lines go: the terminal, or the rotated log of a detached mesh."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG_FILE = "mandate.log"
LOG_MAX_BYTES = 10_000_000
LOG_FILES_KEPT = 3
NAME_WIDTH = 10


def terminal() -> Callable[[str, str], None]:
    """Return a writer of lines to standard output; a reader that went away ends the output, not the mesh."""
    gone = False

    def say(name: str, line: str) -> None:
        nonlocal gone
        if gone:
            return
        try:
            print(_text(name, line), flush=True)  # noqa: T201  # the command's own output
        except BrokenPipeError:
            gone = True

    return say


def log(folder: Path) -> Callable[[str, str], None]:
    """Return a writer of lines with their time to the log in `folder`, at most 40 MB in all."""
    handler = RotatingFileHandler(folder / LOG_FILE, maxBytes=LOG_MAX_BYTES, backupCount=LOG_FILES_KEPT)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def say(name: str, line: str) -> None:
        handler.emit(logging.LogRecord("mandate", logging.INFO, "", 0, _text(name, line), None, None))

    return say


def complain(line: str) -> None:
    """Write a line to standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # the command's own output


def _text(name: str, line: str) -> str:
    return f"{name:<{NAME_WIDTH}} | {line}" if name else line
