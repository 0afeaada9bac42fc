"""The pooled HTTP client for providers: it says whether bytes may have been sent, and retries nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway_svc.providers import BrokenOff, NotSent

CONNECT_SECONDS_MAX = 5
KEEPALIVE_SECONDS = 4  # below the 5 s after which common servers close: a request on a closing connection is ambiguous
LAST_BYTES_SECONDS = 0.05
CONNECTIONS_MAX = 2_000
BODY_BYTES_MAX = 32 * 1024 * 1024
TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))  # NAT64, RFC 6052, 8215


class Answer(Protocol):
    """An HTTP answer whose head has arrived."""

    status: int

    def header(self, name: str) -> str:
        """Return a header, empty when it is not there."""
        ...

    async def body(self) -> bytes:
        """Read all of it, at most 32 MiB; BrokenOff when it ends early."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Give its bytes as they come; BrokenOff when it ends early."""
        ...


class Upstream:
    """One pool of connections; with `public_only` it connects to no private address, whatever a name resolves to."""

    def __init__(self, *, silence_seconds_max: int, public_only: bool) -> None:
        self._public_only = public_only
        connector = aiohttp.TCPConnector(
            limit=CONNECTIONS_MAX,
            keepalive_timeout=KEEPALIVE_SECONDS,
            resolver=PublicResolver() if public_only else None,
        )
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS_MAX, sock_read=silence_seconds_max)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
        )

    @asynccontextmanager
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AsyncGenerator[Answer]:
        """Send a request once and give its answer; NotSent or BrokenOff when there is none."""
        address = _address(url)
        if self._public_only:
            _refuse_private_literal(address)
        try:
            response = await self._session.post(address, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise NotSent(type(error).__name__) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenOff(type(error).__name__) from None
        try:
            yield _Answer(response)
        finally:
            await _finish(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    async def body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self.chunks():
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BrokenOff("the answer is too large")
            parts.append(part)
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while part := await self._response.content.readany():
                yield part
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenOff(type(error).__name__) from None


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not found or not all(is_public(result["host"]) for result in found):
            raise OSError(f"{host} is not a public address")
        return found

    async def close(self) -> None:
        await self._inner.close()


def is_public(address: str) -> bool:
    """Return whether an address is one of the open internet, as is the IPv4 address inside of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = _inner(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


async def _finish(response: aiohttp.ClientResponse) -> None:
    """Keep the connection where the answer ends at once, as it does after [DONE]; else close it."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with asyncio.timeout(LAST_BYTES_SECONDS):
            await response.content.readany()
    if response.content.at_eof():
        response.release()
    else:
        response.close()


def _address(url: str) -> URL:
    try:
        return URL(url)
    except ValueError:
        raise NotSent("this is no address") from None


def _refuse_private_literal(url: URL) -> None:
    """Refuse an address written into the URL, which is never resolved; anything but https as well."""
    host = url.host or ""  # as it will be connected to: other scripts' digits have become ours
    is_literal = ":" in host or host.replace(".", "").isdecimal()
    if url.scheme != "https" or not host or (is_literal and not is_public(host)):
        raise NotSent("only public https addresses may be asked")
