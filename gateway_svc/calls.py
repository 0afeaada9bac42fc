"""Make one call for all who want its answer at the same time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class Calls(Generic[Key, Answer]):
    """Calls that run now; bounded by those who wait for them."""

    def __init__(self) -> None:
        self._running: dict[Key, asyncio.Task[Answer]] = {}

    async def share(self, key: Key, make: Callable[[], Awaitable[Answer]]) -> Answer:
        """Wait for the call that runs for `key`, begun now if none does; one caller that leaves does not end it."""
        task = self._running.get(key)
        if task is None:
            # A context of its own: it serves all who wait, so it is bound to nobody's deadline or trace.
            task = asyncio.get_running_loop().create_task(_run(make), context=contextvars.Context())
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)


async def _run(make: Callable[[], Awaitable[Answer]]) -> Answer:
    return await make()
