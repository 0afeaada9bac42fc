"""The channels to the services that the gateway calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mandate.identity.v1 import directory_pb2, keys_pb2
from mandate.ledger.v1 import charges_pb2, prices_pb2
from mandate.vault.v1 import credentials_pb2
from mesh import audit, client, ports
from mesh.settings import Runtime
from mesh.tls import Certificates

IDENTITY = (
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"],
    directory_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
)
VAULT = (credentials_pb2.DESCRIPTOR.services_by_name["CredentialService"],)
LEDGER = (
    charges_pb2.DESCRIPTOR.services_by_name["ChargeService"],
    prices_pb2.DESCRIPTOR.services_by_name["PriceService"],
    audit.SERVICE,
)


@dataclass(frozen=True, slots=True)
class Channels:
    """One channel a service."""

    identity: grpc.aio.Channel
    vault: grpc.aio.Channel
    ledger: grpc.aio.Channel


@asynccontextmanager
async def channels(runtime: Runtime) -> AsyncGenerator[Channels]:
    """Open all of them with the gateway's certificate."""
    certificates = Certificates(runtime.tls, "gateway")
    async with (
        client.connected(
            client.connect("identity", ports.address_of("identity", runtime), certificates, IDENTITY)
        ) as identity,
        client.connected(client.connect("vault", ports.address_of("vault", runtime), certificates, VAULT)) as vault,
        client.connected(client.connect("ledger", ports.address_of("ledger", runtime), certificates, LEDGER)) as ledger,
    ):
        yield Channels(identity, vault, ledger)
