"""Calls shared by all who want their answer at the same time, and streams that the far side may cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mesh import deadline
from mesh.errors import Unavailable

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
            task = asyncio.get_running_loop().create_task(_run(make))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)


async def unless_cancelled_there(step: Awaitable[Answer]) -> Answer:
    """Wait for one step of a stream; a call that the far side cancelled is Unavailable, not a cancellation of ours."""
    try:
        return await step
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable("SERVICE_UNAVAILABLE", "a service of the mesh ended the call") from None


async def _run(make: Callable[[], Awaitable[Answer]]) -> Answer:
    with deadline.afresh():  # it serves all who wait, and is part of the trace of the one who came first
        return await make()
