"""One connection to a provider: it carries one exchange at a time, and an idle one that hears anything is closed."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast, final

from gateway_svc.providers.http1.exchange import Exchange, Room

JOINED_BYTES_MAX = 64 * 1024  # a longer body is not copied to stand behind its head


class Place(Protocol):
    """Who keeps the connections to one origin."""

    def over(self, connection: Connection, idle_until: float) -> None:
        """Take it back after an exchange; an `idle_until` of 0 says that it is closed."""
        ...

    def lost(self, connection: Connection) -> None:
        """Note that it is no more."""
        ...


@final
class Connection(asyncio.Protocol):
    """An open connection; `exchange` is what it is busy with."""

    __slots__ = ("_idle_seconds_max", "_loop", "_place", "_transport", "exchange", "idle_until")

    def __init__(self, place: Place, idle_seconds_max: float) -> None:
        self.exchange: Exchange | None = None
        self.idle_until = 0.0
        self._idle_seconds_max = idle_seconds_max
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Return whether neither side has closed it, as far as we have heard."""
        return self._transport is not None and not self._transport.is_closing()

    def usable(self) -> bool:
        """Return whether an idle one may be used again."""
        return self.is_open and self._loop.time() < self.idle_until

    def send(self, head: bytes, body: bytes, room: Room) -> Exchange:
        """Send a request; from here on the peer may have it."""
        transport = self._transport
        if transport is None or self.exchange is not None:
            raise RuntimeError("a connection carries one exchange at a time")
        exchange = self.exchange = Exchange(self, room, self._loop.time())
        if len(body) <= JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return exchange

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def over(self, *, reusable: bool, keep_seconds: int | None) -> None:
        self.exchange = None
        transport = self._transport
        seconds = self._idle_seconds_max if keep_seconds is None else min(self._idle_seconds_max, keep_seconds - 1)
        # An answer may come before all of its request has gone, and then the rest is still to come.
        if not reusable or seconds <= 0 or transport is None or not self.is_open or transport.get_write_buffer_size():
            self.close()
            self._place.over(self, 0)
        else:
            self._place.over(self, self._loop.time() + seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.close()
        else:
            self.exchange.received(data, self._loop.time())

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.seen = self._loop.time()

    def eof_received(self) -> None:
        if self.exchange is None:
            self.close()
        else:
            self.exchange.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.exchange is not None:
            self.exchange.fail("it closed the connection" if exc is None else type(exc).__name__)
        self._place.lost(self)
