"""The deadline that the client set becomes ours; a unary call without one is given one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from mesh import deadline
from mesh.chain import Call

UNARY_MS_MAX = 30_000


@asynccontextmanager
async def step(call: Call) -> AsyncGenerator[None]:
    """Bound the handler by the client's deadline, and a unary one by 30 s in any case."""
    left_seconds = cast("float | None", call.context.time_remaining())  # the stubs forget the call without a deadline
    if call.streaming and left_seconds is None:
        yield
        return
    limit_ms = min(left_seconds * 1000 if left_seconds is not None else UNARY_MS_MAX, 1e9)
    if not call.streaming:
        limit_ms = min(limit_ms, UNARY_MS_MAX)
    with deadline.within(limit_ms):
        async with asyncio.timeout(limit_ms / 1000):
            yield
