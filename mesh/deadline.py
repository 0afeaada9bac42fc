"""How long the present piece of work may still take; it shrinks at each hop and never grows."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

KEPT_BACK_MS = 20  # so that the nearer server can still say which call was slow

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


def remaining_ms() -> float | None:
    """Return the milliseconds left, or None when nobody set a deadline."""
    at = _DEADLINE.get()
    return None if at is None else (at - asyncio.get_running_loop().time()) * 1000


def budget_ms(wanted_ms: float) -> float:
    """Return the time an outgoing call may take: what it wants, but no more than is left less what is kept back."""
    left = remaining_ms()
    return wanted_ms if left is None else max(1.0, min(wanted_ms, left - KEPT_BACK_MS))


@contextmanager
def within(limit_ms: float) -> Generator[None]:
    """Give the block at most `limit_ms`, less if an outer deadline is nearer. It bounds calls; it cancels nothing."""
    at = asyncio.get_running_loop().time() + limit_ms / 1000
    outer = _DEADLINE.get()
    reset = _DEADLINE.set(at if outer is None else min(outer, at))
    try:
        yield
    finally:
        _DEADLINE.reset(reset)


@contextmanager
def afresh() -> Generator[None]:
    """Forget every outer deadline inside the block: for work that serves others too."""
    reset = _DEADLINE.set(None)
    try:
        yield
    finally:
        _DEADLINE.reset(reset)
