"""The ledger's RPCs, one module a contract: unpack, decide, write, pack."""

from __future__ import annotations

from dataclasses import dataclass

from ledger_svc.commits import Commits
from ledger_svc.price_book import PriceBook
from ledger_svc.service.audit import AuditServicer
from ledger_svc.service.budgets import BudgetServicer
from ledger_svc.service.charges import ChargeServicer
from ledger_svc.service.prices import PriceServicer
from ledger_svc.service.registry import RegistryServicer
from ledger_svc.service.wallets import WalletServicer
from ledger_svc.store import registry
from mandate.ledger.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    charges_pb2,
    charges_pb2_grpc,
    prices_pb2,
    prices_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    wallets_pb2,
    wallets_pb2_grpc,
)
from mesh.db import Database
from mesh.server import Registration


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the ledger's servicers stand on."""

    db: Database
    commits: Commits
    prices: PriceBook

    def registrations(self) -> list[Registration]:
        """Return every contract of the ledger with what implements it."""
        return [
            Registration(
                charges_pb2.DESCRIPTOR.services_by_name["ChargeService"],
                charges_pb2_grpc.add_ChargeServiceServicer_to_server,
                ChargeServicer(self.db, self.commits, self.prices),
            ),
            Registration(
                wallets_pb2.DESCRIPTOR.services_by_name["WalletService"],
                wallets_pb2_grpc.add_WalletServiceServicer_to_server,
                WalletServicer(self.db),
            ),
            Registration(
                budgets_pb2.DESCRIPTOR.services_by_name["BudgetService"],
                budgets_pb2_grpc.add_BudgetServiceServicer_to_server,
                BudgetServicer(self.db),
            ),
            Registration(
                prices_pb2.DESCRIPTOR.services_by_name["PriceService"],
                prices_pb2_grpc.add_PriceServiceServicer_to_server,
                PriceServicer(self.prices),
            ),
            Registration(
                registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
                registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                RegistryServicer(self.db),
            ),
            Registration(
                audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditServicer(self.db),
            ),
        ]

    async def resolve(self, object_id: str) -> str | None:
        """Return which organization an object of the ledger belongs to."""
        return await registry.organization_of(self.db, object_id)
