"""Names looked up to addresses, and which of those lie on the open internet."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from gateway_svc.providers.http1.request import InvalidRequest, Origin
from gateway_svc.shares import Shares

TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64 to the open internet, RFC 6052
ALLOCATED = ipaddress.IPv6Network("2000::/3")  # all that is given out for the open internet, RFC 4291
# Of what is allocated and what Python 3.11 calls global: IANA's registries of special purposes, and old tunnels.
SPECIAL_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
SPECIAL_V4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))
KNOWN_SECONDS = 10.0
KNOWN_MAX = 1024
LOOKUPS_MAX = 256
LOOKUPS_AT_ONCE = 16  # a thread each, of the pool's own: slow names of tenants take none of the operator's
LOOKUPS_OF_DOMAIN = 4  # at once: names that never answer share a server, and those of others do not wait for it
DOMAIN_SHARE = Fraction(1, 4)
DOMAIN_LABELS = 2


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
        inner = _inner(parsed)
        if inner is None:
            return parsed in ALLOCATED and parsed.is_global and not any(parsed in network for network in SPECIAL_V6)
        parsed = inner
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in SPECIAL_V4)


def refuse_private_literal(origin: Origin) -> None:
    """Refuse an address written into the URL, before it is looked up; anything but https as well."""
    host = origin.host  # as it will be connected to: other scripts' digits have become ours
    is_literal = ":" in host or host.replace(".", "").isdecimal()
    if not origin.is_tls or (is_literal and not is_public(host)):
        raise InvalidRequest("only public https addresses may be asked")


@dataclass(slots=True)
class _Domain:
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOKUPS_OF_DOMAIN))
    users: int = 0


class Addresses:
    """The names of one pool. With `public_only` a name that has any private address has none."""

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only
        self._known: dict[str, _Known] = {}
        self._lookups: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._shares = Shares(LOOKUPS_MAX, DOMAIN_SHARE)
        self._domains: dict[str, _Domain] = {}
        self._turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "addresses")  # it makes them when they are needed

    @property
    def count(self) -> int:
        """Return how many names are remembered."""
        return len(self._known)

    async def of(self, host: str) -> tuple[Address, ...]:
        """Return a host's addresses, at most 10 s old; OSError when there are none that may be asked.

        A look-up cannot be ended. Whoever waits sets a time limit; the one thread of the name is free when it returns.
        """
        known = self._known.get(host)
        if known is not None and asyncio.get_running_loop().time() < known.until:
            return known.addresses
        lookup = self._lookups.get(host)
        if lookup is None:
            if not self._shares.take(_domain(host), 1):
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
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        domain = self._domains.setdefault(_domain(host), _Domain())
        domain.users += 1
        try:
            async with domain.turns, self._turns:
                found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        finally:
            domain.users -= 1
            if not domain.users:
                del self._domains[_domain(host)]
        addresses = tuple(dict.fromkeys(Address(family, str(place[0])) for family, _, _, _, place in found))
        if not addresses or (self._public_only and not all(is_public(address.host) for address in addresses)):
            raise OSError("this name has no public address")
        return addresses

    def _looked_up(self, host: str, lookup: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._lookups[host]
        self._shares.give_back(_domain(host), 1)
        if lookup.cancelled() or lookup.exception() is not None:
            return
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known.pop(host, None)
        self._known[host] = _Known(lookup.result(), asyncio.get_running_loop().time() + KNOWN_SECONDS)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in TRANSLATED else address.ipv4_mapped


def _domain(host: str) -> str:
    return ".".join(host.rstrip(".").rsplit(".", DOMAIN_LABELS)[-DOMAIN_LABELS:])
