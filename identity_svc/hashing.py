"""argon2id (RFC 9106) over people's passwords, on threads of its own and no more at once than the memory allows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from mesh.errors import Unavailable
from mesh.secret import Secret

THREADS = 2
WAITING_MAX = 40  # about a second of work
RETRY_AFTER_MS = 1_000

Result = TypeVar("Result")


class Hasher:
    """Hashes and verifies; what comes when too much is waiting is Unavailable OVERLOADED."""

    def __init__(self, argon2: PasswordHasher, pool: ThreadPoolExecutor, *, waiting_max: int = WAITING_MAX) -> None:
        self._argon2 = argon2
        self._pool = pool
        self._waiting_max = waiting_max
        self._at_work = 0
        # Nobody knows its password: an unknown email costs the work of a known one.
        self._dummy = argon2.hash(secrets.token_hex())

    async def hash(self, password: Secret) -> str:
        """Return what to keep of a password."""
        return await self._run(lambda: self._argon2.hash(password.reveal()))

    async def verify(self, kept: str | None, password: Secret) -> bool:
        """Return whether a password is the kept one; with nothing kept, the same work says no."""
        matches = await self._run(lambda: self._matches(kept or self._dummy, password))
        return matches and kept is not None

    def is_outdated(self, kept: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(kept)

    def _matches(self, kept: str, password: Secret) -> bool:
        try:
            return self._argon2.verify(kept, password.reveal())
        except VerifyMismatchError:
            return False

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._at_work >= THREADS + self._waiting_max:
            raise Unavailable("OVERLOADED", "too many logins at once", retry_after_ms=RETRY_AFTER_MS)
        self._at_work += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._at_work -= 1


@asynccontextmanager
async def hashing(memory_kib: int, passes: int, lanes: int) -> AsyncGenerator[Hasher]:
    """Lend a hasher with two threads; what still runs at the end is waited for, what waits is dropped."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
    try:
        yield Hasher(PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes), pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
