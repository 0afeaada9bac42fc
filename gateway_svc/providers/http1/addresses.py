"""Names looked up to addresses, and which of those lie on the open internet."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

from gateway_svc.providers.http1.request import InvalidRequest, Origin

TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))  # NAT64, RFC 6052, 8215
KNOWN_SECONDS = 10.0
KNOWN_MAX = 1024
LOOKUPS_MAX = 256
LOOKUPS_AT_ONCE = 2  # the loop has four threads or so for them: slow names of tenants must leave some to the operator


@dataclass(frozen=True, slots=True)
class Address:
    """Where a connection can be made to, without another look-up."""

    family: int
    host: str


@dataclass(frozen=True, slots=True)
class _Known:
    addresses: tuple[Address, ...]
    until: float


def is_public(address: str) -> bool:
    """Return whether an address is one of the open internet, as is the IPv4 address inside of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = _inner(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast


def refuse_private_literal(origin: Origin) -> None:
    """Refuse an address written into the URL, before it is looked up; anything but https as well."""
    host = origin.host  # as it will be connected to: other scripts' digits have become ours
    is_literal = ":" in host or host.replace(".", "").isdecimal()
    if not origin.is_tls or (is_literal and not is_public(host)):
        raise InvalidRequest("only public https addresses may be asked")


class Addresses:
    """The names of one pool. With `public_only` a name that has any private address has none."""

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only
        self._known: dict[str, _Known] = {}
        self._lookups: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    @property
    def count(self) -> int:
        """Return how many names are remembered."""
        return len(self._known)

    async def of(self, host: str) -> tuple[Address, ...]:
        """Return a host's addresses, at most 10 s old; OSError when there are none that may be asked."""
        known = self._known.get(host)
        if known is not None and asyncio.get_running_loop().time() < known.until:
            return known.addresses
        lookup = self._lookups.get(host)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                raise OSError("too many names are being looked up")
            lookup = self._lookups[host] = asyncio.create_task(self._look_up(host))
            lookup.add_done_callback(lambda done: self._looked_up(host, done))
        return await asyncio.shield(lookup)

    async def close(self) -> None:
        """Give up what is being looked up."""
        lookups = tuple(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        async with self._turns:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = tuple(dict.fromkeys(Address(family, str(place[0])) for family, _, _, _, place in found))
        if not addresses or (self._public_only and not all(is_public(address.host) for address in addresses)):
            raise OSError("this name has no public address")
        return addresses

    def _looked_up(self, host: str, lookup: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._lookups[host]
        if lookup.cancelled() or lookup.exception() is not None:
            return
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known.pop(host, None)
        self._known[host] = _Known(lookup.result(), asyncio.get_running_loop().time() + KNOWN_SECONDS)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
