"""The connections of one pool: who may have one, which are idle, and which have been silent for too long."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import final

from gateway_svc.providers import NotSent
from gateway_svc.providers.http1.addresses import Address, Addresses
from gateway_svc.providers.http1.connection import Connection
from gateway_svc.providers.http1.request import Origin

ANSWER_SECONDS_MAX = 3_600.0  # one that trickles would keep its hold for ever
CLOSE_SECONDS_MAX = 1.0
SWEEPS_PER_SILENCE = 10
SWEEP_SECONDS_MAX = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one pool may take up; `silence_seconds` is how long a peer may say nothing while it owes an answer."""

    silence_seconds: float
    connect_seconds: float = 5  # the name, the connection and TLS together
    turn_seconds: float = 5  # for a connection to come free
    idle_seconds: float = 4  # below the 5 s after which common servers close: a request that meets it is ambiguous
    connections: int = 2_000
    connections_per_origin: int = 500
    waiting: int = 2_000


@cache
def default_tls() -> ssl.SSLContext:
    """Return how providers are known: by the machine's authorities, under the name that they were asked by."""
    return with_alpn(ssl.create_default_context())


def with_alpn(context: ssl.SSLContext) -> ssl.SSLContext:
    """Say in the handshake that HTTP/1.1 is spoken."""
    context.set_alpn_protocols(["http/1.1"])
    return context


@final
class _Turns:
    """A number of turns, first come, first served; asyncio's semaphore costs more than what it guards here."""

    __slots__ = ("_waiters", "free")

    def __init__(self, free: int) -> None:
        self.free = free
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def wait(self) -> None:
        """Take a turn as soon as there is one."""
        if self.free:
            self.free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            if not waiter.cancelled():  # the turn was given in the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give a turn back, to whoever has waited longest."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1


@final
class _Place:
    """The connections to one origin; `users` are those that have one or wait for one."""

    __slots__ = ("idle", "origin", "pool", "turns", "users")

    def __init__(self, pool: Pool, origin: Origin, connections_max: int) -> None:
        self.pool = pool
        self.origin = origin
        self.turns = _Turns(connections_max)
        self.idle: dict[Connection, None] = {}  # the one that came back last is taken first
        self.users = 0

    def over(self, connection: Connection, idle_until: float) -> None:
        self.pool.over(connection, self, idle_until)

    def lost(self, connection: Connection) -> None:
        self.pool.lost(connection, self)


@final
class Pool:
    """Connections by origin. A turn is held for as long as an exchange is under way."""

    def __init__(self, limits: Limits, addresses: Addresses, tls: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._addresses = addresses
        self._tls = tls
        self._turns = _Turns(limits.connections)
        self._places: dict[Origin, _Place] = {}
        self._idle: dict[Connection, _Place] = {}  # the one that came back first is closed first
        self._open: set[Connection] = set()
        self._opening = 0
        self._waiting = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()
        self._closed = False

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return how many connections are open, how many of these are idle, and how many origins are known."""
        return len(self._open), len(self._idle), len(self._places)

    def idle(self, origin: Origin) -> Connection | None:
        """Return an idle connection, where one is there and nobody waits; it must be sent on at once."""
        place = self._places.get(origin)
        if place is None or not place.idle or not place.turns.free or not self._turns.free:
            return None
        connection = self._take_idle(place)
        if connection is None:
            self._forget_place(place)
            return None
        place.users += 1
        place.turns.free -= 1
        self._turns.free -= 1
        return connection

    async def acquire(self, origin: Origin) -> Connection:
        """Return a connection to be sent on at once, in its turn; NotSent when there is none in time."""
        place = self._places.get(origin)
        if place is None:
            place = self._places[origin] = _Place(self, origin, self._limits.connections_per_origin)
        place.users += 1
        try:
            await self._turn(place)
        except BaseException:
            self._leave(place)
            raise
        try:
            return self._take_idle(place) or await self._connect(place)
        except BaseException:
            self._give_turn(place)
            raise

    async def close(self) -> None:
        """Close every connection; whatever is under way breaks off."""
        self._closed = True
        await self._addresses.close()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            if connection.exchange is not None:
                connection.exchange.fail("the gateway is stopping")
            connection.close()
        if self._open:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._emptied.wait()

    def over(self, connection: Connection, place: _Place, idle_until: float) -> None:
        if idle_until and not self._closed:
            connection.idle_until = idle_until
            place.idle[connection] = None
            self._idle[connection] = place
        elif idle_until:
            connection.close()
        self._give_turn(place)

    def lost(self, connection: Connection, place: _Place) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._forget_idle(connection, place)
        if self._closed and not self._open:
            self._emptied.set()

    async def _turn(self, place: _Place) -> None:
        if self._waiting >= self._limits.waiting:
            raise NotSent("too many requests wait for a connection")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.turn_seconds):
                await place.turns.wait()
                try:
                    await self._turns.wait()
                except BaseException:
                    place.turns.give_back()
                    raise
        except TimeoutError:
            raise NotSent("no connection came free") from None
        finally:
            self._waiting -= 1

    def _give_turn(self, place: _Place) -> None:
        self._turns.give_back()
        place.turns.give_back()
        self._leave(place)

    def _leave(self, place: _Place) -> None:
        place.users -= 1
        self._forget_place(place)

    def _forget_place(self, place: _Place) -> None:
        if not place.users and not place.idle:
            del self._places[place.origin]

    def _take_idle(self, place: _Place) -> Connection | None:
        while place.idle:
            connection, _ = place.idle.popitem()
            del self._idle[connection]
            if connection.usable():
                return connection
            connection.close()
        return None

    def _forget_idle(self, connection: Connection, place: _Place) -> None:
        del self._idle[connection]
        del place.idle[connection]
        self._forget_place(place)

    async def _connect(self, place: _Place) -> Connection:
        if self._closed:
            raise NotSent("the gateway is stopping")
        while self._idle and len(self._open) + self._opening >= self._limits.connections:
            oldest, home = next(iter(self._idle.items()))
            self._forget_idle(oldest, home)
            oldest.close()
            self._open.discard(oldest)  # `lost` will find it gone
        self._opening += 1
        try:
            async with asyncio.timeout(self._limits.connect_seconds) as deadline:
                addresses = await self._addresses.of(place.origin.host)
                connection = await self._connect_to_one(place, addresses, deadline.when() or 0.0)
        except (OSError, ValueError) as error:  # ValueError: a name that can't be one of the DNS
            raise NotSent(type(error).__name__) from None
        finally:
            self._opening -= 1
        if self._closed:
            connection.close()
            raise NotSent("the gateway is stopping")
        if not connection.is_open:
            raise NotSent("it closed the connection before anything was sent")
        self._open.add(connection)
        if self._sweep is None:
            self._sweep_later()
        return connection

    async def _connect_to_one(self, place: _Place, addresses: tuple[Address, ...], deadline: float) -> Connection:
        """Try the addresses in turn, each with an equal share of what is left of the time."""
        loop = asyncio.get_running_loop()
        for left in range(len(addresses), 1, -1):
            share_seconds = max(0.0, deadline - loop.time()) / left
            try:
                async with asyncio.timeout(share_seconds):
                    return await self._connect_to(place, addresses[-left])
            except OSError:
                continue
        return await self._connect_to(place, addresses[-1])

    async def _connect_to(self, place: _Place, address: Address) -> Connection:
        loop, origin = asyncio.get_running_loop(), place.origin
        tls = (self._tls or default_tls()) if origin.is_tls else None
        _, connection = await loop.create_connection(
            lambda: Connection(place, self._limits.idle_seconds),
            address.host,
            origin.port,
            family=address.family,
            ssl=tls,
            server_hostname=origin.host.rstrip(".") if tls is not None else None,
        )
        return connection

    def _sweep_later(self) -> None:
        seconds = min(SWEEP_SECONDS_MAX, self._limits.silence_seconds / SWEEPS_PER_SILENCE)
        self._sweep = asyncio.get_running_loop().call_later(seconds, self._sweep_now)

    def _sweep_now(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open):
            exchange = connection.exchange
            if exchange is None:
                if connection in self._idle and connection.idle_until <= now:
                    connection.close()
            elif exchange.is_silent(now - self._limits.silence_seconds):
                exchange.fail("it stayed silent")
            elif exchange.is_older(now - ANSWER_SECONDS_MAX):
                exchange.fail("it came to no end")
        self._sweep = None
        if self._open:
            self._sweep_later()
