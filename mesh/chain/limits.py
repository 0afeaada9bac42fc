"""Calls at once have a maximum; past it a server sheds load early instead of queueing without bound."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mesh.chain import Call, Step
from mesh.errors import Unavailable

AT_ONCE_MAX = 1_000
RETRY_AFTER_MS = 200


def step(at_once_max: int = AT_ONCE_MAX) -> Step:
    """Build the step; it counts the calls of this process."""
    running = 0

    @asynccontextmanager
    async def admit(call: Call) -> AsyncGenerator[None]:
        nonlocal running
        if call.rule is not None and running >= at_once_max:
            raise Unavailable("OVERLOADED", "too many calls at once", retry_after_ms=RETRY_AFTER_MS)
        running += 1
        try:
            yield
        finally:
            running -= 1

    return admit
