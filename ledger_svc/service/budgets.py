"""Budgets: make, change, list, enable."""

from __future__ import annotations

from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.store import budgets, registry
from mandate.ledger.v1 import budgets_pb2 as pb
from mandate.ledger.v1 import budgets_pb2_grpc as rpc
from mesh import caller, ids
from mesh.db import Database
from mesh.errors import FailedPrecondition, NotFound, invalid
from mesh.idempotency import check_request_id
from mesh.money import MICROS_MAX
from mesh.paging import next_token, page_of

TARGETS = {ids.Kind.ORGANIZATION, ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT}
Context = grpc.aio.ServicerContext[Any, Any]


class BudgetServicer(rpc.BudgetServiceServicer):
    """Implements mandate.ledger.v1.BudgetService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def CreateBudget(self, request: pb.CreateBudgetRequest, context: Context) -> pb.Budget:
        key = check_request_id(request)
        _check_limit(request.limit_micros)
        period = wire.PERIODS.get(request.period)
        if period is None:
            raise invalid("period", "must be DAILY, MONTHLY or TOTAL")
        new = budgets.NewBudget(
            ids.new(ids.Kind.BUDGET), key, request.target_id, period, request.limit_micros, request.auto_disable
        )
        if ids.kind_of(request.target_id) not in TARGETS:
            raise invalid("target_id", "must be an organization, workspace, agent group or agent")
        organization_id = await self._organization_of(request.target_id)
        created = await budgets.create(self._db, organization_id, new, caller.current().actor)
        if created.field:
            raise wire.differs(created.field)
        if created.full:
            raise FailedPrecondition("BUDGETS_FULL", "the target has 100 budgets, and takes no more", field="target_id")
        return await self._get(created.id)

    async def UpdateBudget(self, request: pb.UpdateBudgetRequest, context: Context) -> pb.Budget:
        key = check_request_id(request)
        limit = request.limit_micros if request.HasField("limit_micros") else None
        auto = request.auto_disable if request.HasField("auto_disable") else None
        if limit is None and auto is None:
            raise invalid("limit_micros", "nothing to change was given")
        _check_limit(limit or 0)
        organization_id = await self._organization_of_budget(request.budget_id)
        actor = caller.current().actor
        differs = await budgets.change(
            self._db, organization_id, request.budget_id, key, actor, limit_micros=limit, auto_disable=auto
        )
        return await self._changed(request.budget_id, differs)

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Context) -> pb.ListBudgetsResponse:
        page = page_of(request.page_size, request.page_token)
        rows = await budgets.of_organization(self._db, request.organization_id, page.after, page.size + 1)
        return pb.ListBudgetsResponse(
            budgets=[wire.budget(row) for row in rows[: page.size]],
            next_page_token=next_token(page, [row["id"] for row in rows]),
        )

    async def EnableBudget(self, request: pb.EnableBudgetRequest, context: Context) -> pb.Budget:
        key = check_request_id(request)
        organization_id = await self._organization_of_budget(request.budget_id)
        actor = caller.current().actor
        differs = await budgets.change(self._db, organization_id, request.budget_id, key, actor, disabled=False)
        return await self._changed(request.budget_id, differs)

    async def _organization_of(self, object_id: str) -> str:
        organization_id = await registry.organization_of(self._db, object_id)
        if organization_id is None:
            raise NotFound("NOT_FOUND", f"no {object_id!r}")
        return organization_id

    async def _organization_of_budget(self, budget_id: str) -> str:
        if ids.kind_of(budget_id) is not ids.Kind.BUDGET:
            raise NotFound("NOT_FOUND", f"no budget {budget_id!r}"[:200], field="budget_id")
        return await self._organization_of(budget_id)

    async def _get(self, budget_id: str) -> pb.Budget:
        row = await budgets.get(self._db, budget_id)
        if row is None:
            raise NotFound("NOT_FOUND", f"no {budget_id!r}", field="budget_id")
        return wire.budget(row)

    async def _changed(self, budget_id: str, differs: str) -> pb.Budget:
        if differs:
            raise wire.differs(differs)
        return await self._get(budget_id)


def _check_limit(limit_micros: int) -> None:
    if not 0 <= limit_micros <= MICROS_MAX:
        raise invalid("limit_micros", f"must be 0 to {MICROS_MAX}")
