"""Which port is whose, and whether they are free; offsets of the services stand in `services.py`."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mesh.services import POSTGRES_OFFSET, SERVICES, VALKEY_OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mesh.services import Service
    from mesh.settings import Runtime

BACKLOG = 1024  # connections that wait while a replica of the gateway restarts
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound to here, but asked at this machine


class PortError(Exception):
    """A port can't be had; the text names it and its setting."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A port that the mesh is about to listen on, and whom to tell when it can't."""

    host: str
    port: int
    what: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The ports of one mesh."""

    host: str
    base_port: int
    gateway_port: int
    edge_port: int

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """Return the ports that the settings ask for."""
        return cls(runtime.host, runtime.base_port, runtime.gateway_port, runtime.edge_port)

    @property
    def postgres(self) -> int:
        """Port of the embedded PostgreSQL."""
        return self.base_port + POSTGRES_OFFSET

    @property
    def valkey(self) -> int:
        """Port of the embedded Valkey."""
        return self.base_port + VALKEY_OFFSET

    @property
    def near_host(self) -> str:
        """Address at which this machine reaches its own servers."""
        return ANY.get(self.host, self.host)

    def grpc(self, service: Service, replica: int) -> int | None:
        """Return the gRPC port of a replica, None for a service that has none."""
        return None if service.grpc is None else self.base_port + service.grpc + replica

    def metrics(self, service: Service, replica: int) -> int:
        """Return the port of a replica's own health and metrics."""
        return self.base_port + service.metrics + replica

    def http(self, service: Service) -> int | None:
        """Return the public HTTP port that all replicas of a service share, None for one that has none."""
        if not service.http:
            return None
        return {"gateway": self.gateway_port, "edge": self.edge_port}[service.name]

    def addresses(self, service: Service, replicas: int) -> str:
        """Return the gRPC replicas of a service as `host:port,host:port`."""
        ports = (self.grpc(service, replica) for replica in range(replicas))
        return ",".join(f"{self.near_host}:{port}" for port in ports)

    def claims(self, replicas: dict[str, int], *, postgres: bool, valkey: bool) -> Iterator[Claim]:
        """List the ports of a mesh with so many replicas of each service; shared HTTP ports are not among them."""
        base = f"MANDATE_BASE_PORT={self.base_port}"
        if postgres:
            yield Claim("127.0.0.1", self.postgres, f"PostgreSQL, {base} + {POSTGRES_OFFSET}")
        if valkey:
            yield Claim("127.0.0.1", self.valkey, f"Valkey, {base} + {VALKEY_OFFSET}")
        for service in SERVICES:
            for replica in range(replicas.get(service.name, 0)):
                for kind, port in (("gRPC", self.grpc(service, replica)), ("metrics", self.metrics(service, replica))):
                    if port is not None:
                        yield Claim(self.host, port, f"{service.name} {kind}, {base} + {port - self.base_port}")


def check(claims: Iterable[Claim]) -> None:
    """Raise PortError for the first port that is in use or claimed twice."""
    seen: dict[int, str] = {}
    for claim in claims:
        if claim.port in seen:
            message = f"port {claim.port} is asked for twice: {seen[claim.port]} and {claim.what}"
            raise PortError(message)
        seen[claim.port] = claim.what
        _bound(claim).close()


@contextlib.contextmanager
def listening(claims: dict[str, Claim]) -> Iterator[dict[str, int]]:
    """Listen on each port while the block runs and give the descriptors, for children to accept on."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(_bound(claim)) for name, claim in claims.items()}
        for opened in sockets.values():
            opened.listen(BACKLOG)
        yield {name: opened.fileno() for name, opened in sockets.items()}


def _bound(claim: Claim) -> socket.socket:
    try:
        family = socket.getaddrinfo(claim.host, claim.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        opened = socket.socket(family)
    except OSError as error:
        message = f"{claim.host}: is not an address to listen on ({error.strerror}; MANDATE_HOST)"
        raise PortError(message) from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((claim.host, claim.port))
    except OSError as error:
        opened.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        message = f"port {claim.port} ({claim.what}) {why}; nothing was started"
        raise PortError(message) from None
    return opened
