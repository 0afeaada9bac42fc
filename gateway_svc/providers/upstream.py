"""The pooled HTTP client for providers: it says whether bytes may have been sent, and retries nothing.

It speaks HTTP/1.1 and POST only, follows no redirect, keeps no cookie and reads no proxy from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, final

from gateway_svc.providers import BrokenOff, NotSent
from gateway_svc.providers.http1.addresses import Addresses, is_public, refuse_private_literal
from gateway_svc.providers.http1.exchange import BODY_BYTES_MAX, Exchange, Room, TooLarge
from gateway_svc.providers.http1.inflation import InflatedTooFar, Inflation, NotInflated, is_encoded
from gateway_svc.providers.http1.pool import Limits, Pool
from gateway_svc.providers.http1.request import InvalidRequest, head_of, target_of

LAST_BYTES_SECONDS = 0.05
INFLATED_STREAM_BYTES_MAX = 8 * BODY_BYTES_MAX

__all__ = ["Answer", "Limits", "Room", "TooLarge", "Upstream", "is_public"]


class Answer(Protocol):
    """An HTTP answer whose head has arrived."""

    status: int
    retry_after: str

    def header(self, name: str) -> str:
        """Return a header, empty when it is not there."""
        ...

    async def body(self) -> bytes:
        """Read all of it; BrokenOff when it ends early, TooLarge past 32 MiB."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Give its bytes as they come; BrokenOff when it ends early."""
        ...


@final
class Upstream:
    """One pool of connections; with `public_only` it connects to no private address, whatever a name resolves to.

    `limits` are the pool's, where they are not the usual ones; `tls` is how to know a provider, where that is not by
    the machine's authorities; `room` is what all pools of a process share.
    """

    def __init__(
        self,
        *,
        silence_seconds_max: int,
        public_only: bool,
        room: Room | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits(silence_seconds=silence_seconds_max)
        self._public_only = public_only
        self._room = room or Room()
        self.pool = Pool(limits, Addresses(public_only=public_only), tls)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AbstractAsyncContextManager[Answer]:
        """Send a request once and give its answer; NotSent or BrokenOff when there is none."""
        return _Post(self, url, headers, body)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Send a request; NotSent when no byte of it left."""
        try:
            target = target_of(url)
            if self._public_only:
                refuse_private_literal(target.origin)
            head = head_of(target, headers, len(body))
        except InvalidRequest as error:
            raise NotSent(str(error)) from None
        connection = self.pool.idle(target.origin) or await self.pool.acquire(target.origin)
        return connection.send(head, body, self._room)

    async def close(self) -> None:
        """Close every connection."""
        await self.pool.close()


@final
class _Post:
    """A request and its answer as a block; a class, as a generator would cost more than what it does here."""

    __slots__ = ("_body", "_exchange", "_headers", "_upstream", "_url")

    def __init__(self, upstream: Upstream, url: str, headers: Mapping[str, str], body: bytes) -> None:
        self._upstream = upstream
        self._url = url
        self._headers = headers
        self._body = body
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Answer:
        exchange = self._exchange = await self._upstream.send(self._url, self._headers, self._body)
        try:
            await exchange.head()
        except BaseException:
            exchange.put_away()
            raise
        return _Answer(exchange)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the connection where the answer ends at once, as it does after [DONE]; else close it."""
        exchange = self._exchange
        if exchange is None:
            return
        try:
            if kind is None:
                await exchange.end(LAST_BYTES_SECONDS)
        finally:
            exchange.put_away()


@final
class _Answer:
    __slots__ = ("_encoding", "_exchange", "retry_after", "status")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.status = exchange.reading.status
        self.retry_after = self.header("retry-after")
        self._encoding = self.header("content-encoding")

    def header(self, name: str) -> str:
        return self._exchange.reading.headers.get(name.lower().encode(), b"").decode("latin-1")

    async def body(self) -> bytes:
        if not self._encoding or not is_encoded(self._encoding):
            return await self._exchange.all()
        return b"".join([piece async for piece in self._inflated(BODY_BYTES_MAX)])

    def chunks(self) -> AsyncIterator[bytes]:
        if not is_encoded(self._encoding):
            return _Chunks(self._exchange)
        return self._inflated(INFLATED_STREAM_BYTES_MAX)

    async def _inflated(self, bytes_max: int) -> AsyncIterator[bytes]:
        try:
            inflation = Inflation(self._encoding, bytes_max)
            while part := await self._exchange.some():
                for piece in inflation.feed(part):
                    yield piece
                    await asyncio.sleep(0)  # a piece takes a millisecond: others have their turn in between
            inflation.end()
        except InflatedTooFar as error:
            raise TooLarge(str(error)) from None
        except NotInflated as error:
            raise BrokenOff(str(error)) from None


@final
class _Chunks:
    """A body as it comes. Unlike a generator it can be asked again after a wait for it was given up."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        part = await self._exchange.some()
        if not part:
            raise StopAsyncIteration
        return part
