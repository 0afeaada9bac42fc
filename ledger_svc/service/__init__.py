"""The ledger's RPCs, one module a contract: unpack, decide, write, pack."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ledger_svc.commits import Commits
from ledger_svc.price_book import PriceBook
from ledger_svc.service.audit import AuditServicer
from ledger_svc.service.budgets import BudgetServicer
from ledger_svc.service.charges import ChargeServicer
from ledger_svc.service.events import EventServicer
from ledger_svc.service.grants import GrantServicer
from ledger_svc.service.intake import Intake
from ledger_svc.service.jobs import JobServicer
from ledger_svc.service.prices import PriceServicer
from ledger_svc.service.registry import RegistryServicer
from ledger_svc.service.reports import ReportServicer
from ledger_svc.service.rules import RulesServicer
from ledger_svc.service.statements import StatementServicer
from ledger_svc.service.wallets import WalletServicer
from ledger_svc.store import registry
from mandate.ledger.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    charges_pb2,
    charges_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    grants_pb2,
    grants_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    prices_pb2,
    prices_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    rules_pb2,
    rules_pb2_grpc,
    statements_pb2,
    statements_pb2_grpc,
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
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def end_streams(self) -> None:
        """Let whoever watches go to another replica."""
        self.stopping.set()

    def registrations(self) -> list[Registration]:
        """Return every contract of the ledger with what implements it."""
        return [
            Registration.of(
                charges_pb2, charges_pb2_grpc, ChargeServicer(self.db, Intake(self.db, self.commits, self.prices))
            ),
            Registration.of(wallets_pb2, wallets_pb2_grpc, WalletServicer(self.db)),
            Registration.of(statements_pb2, statements_pb2_grpc, StatementServicer(self.db)),
            Registration.of(budgets_pb2, budgets_pb2_grpc, BudgetServicer(self.db)),
            Registration.of(prices_pb2, prices_pb2_grpc, PriceServicer(self.db, self.prices)),
            Registration.of(reports_pb2, reports_pb2_grpc, ReportServicer(self.db)),
            Registration.of(rules_pb2, rules_pb2_grpc, RulesServicer(self.db, self.prices)),
            Registration.of(registry_pb2, registry_pb2_grpc, RegistryServicer(self.db)),
            Registration.of(grants_pb2, grants_pb2_grpc, GrantServicer(self.db)),
            Registration.of(events_pb2, events_pb2_grpc, EventServicer(self.db, self.stopping)),
            Registration.of(jobs_pb2, jobs_pb2_grpc, JobServicer(self.db)),
            Registration.of(audit_pb2, audit_pb2_grpc, AuditServicer(self.db)),
        ]

    async def resolve(self, object_id: str) -> str | None:
        """Return which organization an object of the ledger belongs to."""
        return await registry.organization_of(self.db, object_id)
