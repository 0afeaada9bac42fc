"""One request under way: its answer's bytes wait here for whoever reads them, within limits."""

from __future__ import annotations

import asyncio
from typing import Protocol, final

from gateway_svc.providers import BrokenOff, TooLarge
from gateway_svc.providers.http1.framing import Malformed, Reading

BODY_BYTES_MAX = 32 * 1024 * 1024
UNREAD_BYTES_MAX = 256 * 1024
PART_BYTES_LEAST = 64  # what a part takes in memory however short it is
BUFFERED_BYTES_MAX = 256 * 1024 * 1024


@final
class Room:
    """How many bytes of answers wait to be read in a process; all of its pools share one."""

    __slots__ = ("bytes_max", "held_bytes")

    def __init__(self, bytes_max: int = BUFFERED_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0


class Line(Protocol):
    """The connection that an exchange is on, until it is over."""

    def pause(self) -> None:
        """Stop taking bytes from the peer."""
        ...

    def resume(self) -> None:
        """Take bytes again."""
        ...

    def over(self, *, reusable: bool, keep_seconds: int | None) -> None:
        """Give the connection back; it is closed where it can't be used again."""
        ...


@final
class Exchange:
    """An answer on its way from a connection to its one reader; `seen` is when the peer last gave a sign of life."""

    __slots__ = (
        "_began",
        "_failure", "_is_ours", "_is_paused", "_is_whole", "_line", "_parts", "_room", "_unread_bytes", "_waiter",
        "reading", "seen",
    )  # fmt: skip

    def __init__(self, line: Line, room: Room, now: float) -> None:
        self.reading = Reading()
        self.seen = now
        self._began = now
        self._line: Line | None = line
        self._room = room
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._is_paused = False
        self._is_whole = False
        self._failure = ""
        self._is_ours = False  # whether it is we who broke it off, for want of room
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Return whether it has let go of its connection."""
        return self._line is None

    async def head(self) -> None:
        """Wait for the head; BrokenOff when it doesn't come."""
        while not self.reading.has_head:
            if self._failure:
                raise self._broken()
            await self._more()

    async def some(self) -> bytes:
        """Return what has arrived since the last call, waiting for a byte; empty at the end, BrokenOff before it."""
        while not self._parts:
            if self._failure:
                raise self._broken()
            if self.reading.complete:
                return b""
            await self._more()
        return self._take()

    async def all(self) -> bytes:
        """Wait for the end and return what has not been read; BrokenOff when it doesn't come, TooLarge past 32 MiB."""
        self._is_whole = True
        if self._is_paused:
            self._resume()
        while not self.reading.complete:
            if self._failure:
                raise self._broken()
            await self._more()
        if self._failure:
            raise self._broken()
        return self._take()

    async def end(self, seconds: float) -> None:
        """Wait a little for the end of an answer that nobody reads on."""
        if self.is_over:
            return
        try:
            async with asyncio.timeout(seconds):
                while not self.is_over and self._unread_bytes <= UNREAD_BYTES_MAX:
                    await self._more()
        except TimeoutError:
            return  # the connection is closed by whoever asked

    def received(self, data: bytes, now: float) -> None:
        """Take in bytes of the peer."""
        self.seen = now
        reading = self.reading
        try:
            body = reading.feed(data)
        except Malformed as error:
            self.fail(str(error))
            return
        if body and not self._keep(body):
            return
        if reading.complete:
            self._over(reusable=reading.reusable)
        elif self._unread_bytes > UNREAD_BYTES_MAX and not self._is_whole and self._line is not None:
            self._is_paused = True
            self._line.pause()
        if reading.complete or (reading.has_head and not self._is_whole):
            self._wake()

    def ended(self) -> None:
        """Note that the peer will send nothing more."""
        try:
            self.reading.end()
        except Malformed as error:
            self.fail(str(error))
            return
        self._over(reusable=False)
        self._wake()

    def is_silent(self, since: float) -> bool:
        """Return whether the peer gave no sign of life since then, although it could."""
        return self.seen < since and not self._is_paused

    def is_older(self, than: float) -> bool:
        """Return whether it began before a time."""
        return self._began < than

    def fail(self, why: str) -> None:
        """Break it off: what has arrived can still be read, and then comes BrokenOff."""
        if self.reading.complete:
            return
        self._failure = self._failure or why
        self.reading.drop()
        self._over(reusable=False)
        self._wake()

    def put_away(self, why: str = "the answer was put away") -> None:
        """Forget what was not read; the connection is closed where the answer is not complete."""
        self._room.held_bytes -= self._unread_bytes
        self._unread_bytes = 0
        self._parts.clear()
        self._is_paused = False
        self._failure = self._failure or why
        self.reading.drop()
        self._over(reusable=False)
        self._wake()

    def _keep(self, body: bytes) -> bool:
        size = max(len(body), PART_BYTES_LEAST)
        self._parts.append(body)
        self._unread_bytes += size
        self._room.held_bytes += size
        if self._unread_bytes > BODY_BYTES_MAX:
            self._give_up("the answer is too large")
        elif self._room.held_bytes > self._room.bytes_max:
            self._give_up("too many bytes of answers wait to be read")
        return not self._failure

    def _give_up(self, why: str) -> None:
        self._is_ours = not self._failure
        self.put_away(why)

    def _broken(self) -> BrokenOff:
        return TooLarge(self._failure) if self._is_ours else BrokenOff(self._failure)

    def _take(self) -> bytes:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._room.held_bytes -= self._unread_bytes
        self._unread_bytes = 0
        if self._is_paused:
            self._resume()
        return body

    def _resume(self) -> None:
        self._is_paused = False
        if self._line is not None:
            self.seen = asyncio.get_running_loop().time()
            self._line.resume()

    def _over(self, *, reusable: bool) -> None:
        line, self._line = self._line, None
        if line is not None:
            if self._is_paused:
                self._is_paused = False
                line.resume()
            line.over(reusable=reusable, keep_seconds=self.reading.keep_seconds if reusable else None)

    async def _more(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("an answer has one reader")
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
