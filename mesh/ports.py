"""Which port is whose: offsets stand in `services.py`; listening on them is in `sockets.py` and in the servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from mesh.services import POSTGRES_OFFSET, SERVICES, VALKEY_OFFSET, Service, named
from mesh.settings import Runtime
from mesh.sockets import Claim

ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound to here, but asked at this machine

GRPC = {service.name: service.grpc for service in SERVICES if service.grpc is not None}  # offsets from the base port


def grpc_port(service: str, runtime: Runtime) -> int:
    """Return the gRPC port of this process, a replica of `service`."""
    port = Layout.of(runtime).grpc(named(service), runtime.replica)
    if port is None:
        raise ValueError(f"{service} serves no gRPC")
    return port


def metrics_port(service: str, runtime: Runtime) -> int:
    """Return the port of this process's own health and metrics."""
    return Layout.of(runtime).metrics(named(service), runtime.replica)


def address_of(service: str, runtime: Runtime) -> str:
    """Return where a service is reached: its setting, else its first replica on this machine."""
    given: str = getattr(runtime, f"{service}_address", "")
    return given or Layout.of(runtime).addresses(named(service), 1)


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
