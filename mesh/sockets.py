"""Listening sockets made before the processes that accept on them, and the check that ports are free.

A client that vanishes without a word is noticed after 90 s, whether it was silent or sent to: what is accepted
has its listener's options (tcp(7)).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Generator, Iterable
from dataclasses import dataclass

BACKLOG = 1024  # connections that wait while a replica of the gateway restarts
TIMES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 90_000}  # s, s, times, ms
KEEPALIVE = {getattr(socket, name): value for name, value in TIMES.items() if hasattr(socket, name)}


class PortError(Exception):
    """A port can't be had; the text names it and its setting."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A port that the mesh is about to listen on, and whom to tell when it can't."""

    host: str
    port: int
    what: str


def check(claims: Iterable[Claim]) -> None:
    """Raise PortError for the first port that is in use or claimed twice."""
    seen: dict[int, str] = {}
    for claim in claims:
        if claim.port in seen:
            raise PortError(f"port {claim.port} is asked for twice: {seen[claim.port]} and {claim.what}")
        seen[claim.port] = claim.what
        _opened(claim).close()


@contextlib.contextmanager
def listening(claims: dict[str, Claim]) -> Generator[dict[str, int]]:
    """Listen on each port while the block runs and give the descriptors, for children to accept on."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(listen(claim)) for name, claim in claims.items()}
        yield {name: opened.fileno() for name, opened in sockets.items()}


def listen(claim: Claim) -> socket.socket:
    """Listen on a port; PortError where it can't be had."""
    return _opened(claim, listens=True)


def _opened(claim: Claim, *, listens: bool = False) -> socket.socket:
    try:
        family = socket.getaddrinfo(claim.host, claim.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        opened = socket.socket(family)
    except OSError as error:
        raise PortError(f"{claim.host}: is not an address to listen on ({error.strerror}; MANDATE_HOST)") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
        opened.bind((claim.host, claim.port))
        if listens:
            opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise PortError(f"port {claim.port} ({claim.what}) {why}; nothing was started") from None
    return opened
