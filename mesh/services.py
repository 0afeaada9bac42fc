"""Which services make the mesh and where their ports lie: the one list; adding a service is one line here.

How they are started is in `up.py`. Imports nothing heavy, so that every process may read it.
"""

from __future__ import annotations

from dataclasses import dataclass

POSTGRES_OFFSET, VALKEY_OFFSET = 0, 1
REPLICAS_MAX = 10  # ports of two services lie ten apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service; `grpc` and `metrics` are offsets from the base port, to which a replica adds its number."""

    name: str
    package: str
    needs: tuple[str, ...]
    grpc: int | None
    metrics: int
    http: bool = False
    database: bool = True


SERVICES: tuple[Service, ...] = (
    Service(name="ledger", package="ledger_svc", needs=("postgres",), grpc=30, metrics=70),
    Service(name="identity", package="identity_svc", needs=("postgres", "valkey", "ledger"), grpc=10, metrics=50),
    Service(name="vault", package="vault_svc", needs=("postgres", "ledger", "identity"), grpc=20, metrics=60),
    Service(
        name="gateway",
        package="gateway_svc",
        needs=("postgres", "valkey", "identity", "vault", "ledger"),
        grpc=40,
        metrics=80,
        http=True,
    ),
    Service(
        name="edge",
        package="graphql_edge",
        needs=("identity", "vault", "ledger", "gateway"),
        grpc=None,
        metrics=90,
        http=True,
        database=False,
    ),
)


def named(name: str) -> Service:
    """Return the service called `name`; raise KeyError where there is none."""
    return _BY_NAME[name]


_BY_NAME = {service.name: service for service in SERVICES}
