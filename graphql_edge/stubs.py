"""The four services as the edge calls them. Who is behind a call, and its deadline, are in `operation.py`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from mandate.gateway.v1 import policies_pb2, policies_pb2_grpc, routes_pb2, routes_pb2_grpc
from mandate.identity.v1 import directory_pb2, directory_pb2_grpc, keys_pb2, keys_pb2_grpc, people_pb2, people_pb2_grpc
from mandate.ledger.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    grants_pb2,
    grants_pb2_grpc,
    prices_pb2,
    prices_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    rules_pb2,
    rules_pb2_grpc,
    statements_pb2,
    statements_pb2_grpc,
    wallets_pb2,
    wallets_pb2_grpc,
)
from mandate.vault.v1 import credentials_pb2, credentials_pb2_grpc
from mesh import client, ports
from mesh.settings import Runtime
from mesh.tls import Certificates

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

CONTRACTS: Mapping[str, tuple[FileDescriptor, ...]] = {
    "identity": (people_pb2.DESCRIPTOR, directory_pb2.DESCRIPTOR, keys_pb2.DESCRIPTOR),
    "vault": (credentials_pb2.DESCRIPTOR,),
    "ledger": (
        wallets_pb2.DESCRIPTOR,
        budgets_pb2.DESCRIPTOR,
        audit_pb2.DESCRIPTOR,
        grants_pb2.DESCRIPTOR,
        prices_pb2.DESCRIPTOR,
        reports_pb2.DESCRIPTOR,
        rules_pb2.DESCRIPTOR,
        statements_pb2.DESCRIPTOR,
    ),
    "gateway": (policies_pb2.DESCRIPTOR, routes_pb2.DESCRIPTOR),
}
SERVICES = tuple(CONTRACTS)


@dataclass(frozen=True, slots=True)
class Stubs:
    """One stub for each contract, and the channels below them by service."""

    channels: Mapping[str, grpc.aio.Channel]
    people: people_pb2_grpc.PeopleServiceAsyncStub
    directory: directory_pb2_grpc.DirectoryServiceAsyncStub
    keys: keys_pb2_grpc.KeyServiceAsyncStub
    credentials: credentials_pb2_grpc.CredentialServiceAsyncStub
    wallets: wallets_pb2_grpc.WalletServiceAsyncStub
    budgets: budgets_pb2_grpc.BudgetServiceAsyncStub
    audit: audit_pb2_grpc.AuditServiceAsyncStub
    grants: grants_pb2_grpc.GrantServiceAsyncStub
    prices: prices_pb2_grpc.PriceServiceAsyncStub
    reports: reports_pb2_grpc.ReportServiceAsyncStub
    rules: rules_pb2_grpc.RulesServiceAsyncStub
    statements: statements_pb2_grpc.StatementServiceAsyncStub
    policies: policies_pb2_grpc.PolicyServiceAsyncStub
    routes: routes_pb2_grpc.RouteServiceAsyncStub

    @classmethod
    def over(cls, channels: Mapping[str, grpc.aio.Channel]) -> Stubs:
        """Build the stubs over one open channel for each service."""
        identity, vault, ledger, gateway = (channels[service] for service in SERVICES)
        return cls(
            channels=channels,
            people=people_pb2_grpc.PeopleServiceStub(identity),
            directory=directory_pb2_grpc.DirectoryServiceStub(identity),
            keys=keys_pb2_grpc.KeyServiceStub(identity),
            credentials=credentials_pb2_grpc.CredentialServiceStub(vault),
            wallets=wallets_pb2_grpc.WalletServiceStub(ledger),
            budgets=budgets_pb2_grpc.BudgetServiceStub(ledger),
            audit=audit_pb2_grpc.AuditServiceStub(ledger),
            grants=grants_pb2_grpc.GrantServiceStub(ledger),
            prices=prices_pb2_grpc.PriceServiceStub(ledger),
            reports=reports_pb2_grpc.ReportServiceStub(ledger),
            rules=rules_pb2_grpc.RulesServiceStub(ledger),
            statements=statements_pb2_grpc.StatementServiceStub(ledger),
            policies=policies_pb2_grpc.PolicyServiceStub(gateway),
            routes=routes_pb2_grpc.RouteServiceStub(gateway),
        )


@asynccontextmanager
async def connect(addresses: Mapping[str, str], certificates: Certificates) -> AsyncGenerator[Stubs]:
    """Open a channel to each of the four services and close them at the end of the block."""
    async with AsyncExitStack() as stack:
        channels: dict[str, grpc.aio.Channel] = {}
        for service in SERVICES:
            contracts = [found for file in CONTRACTS[service] for found in file.services_by_name.values()]
            channel = client.connect(service, addresses[service], certificates, contracts)
            channels[service] = await stack.enter_async_context(client.connected(channel))
        yield Stubs.over(channels)


def addresses(runtime: Runtime) -> dict[str, str]:
    """Return where each service is reached."""
    return {service: ports.address_of(service, runtime) for service in SERVICES}
