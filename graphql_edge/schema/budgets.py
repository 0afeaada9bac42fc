"""Budgets: what an organization, workspace, agent group or agent may spend in a window."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, KeyRequired, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import Micros, time_of
from graphql_edge.schema.targets import TargetInput, target_id
from mandate.ledger.v1 import budgets_pb2 as pb


@strawberry.enum
class BudgetPeriod(Enum):
    """The length of a budget's windows, in UTC; TOTAL is one window that never ends."""

    DAILY = pb.PERIOD_DAILY
    MONTHLY = pb.PERIOD_MONTHLY
    TOTAL = pb.PERIOD_TOTAL


@strawberry.type
class Budget:
    """A cap, and how much of its present window is spent and held."""

    id: strawberry.ID
    organization_id: strawberry.ID
    target_id: strawberry.ID
    period: BudgetPeriod
    limit_micros: Micros
    auto_disable: bool
    disabled: bool
    settled_micros: Micros
    held_micros: Micros
    window_start_time: datetime
    create_time: datetime


@strawberry.input
class CreateBudgetInput(KeyRequired):
    """A cap; with `autoDisable` everything of the target is refused once the limit was hit, until it is enabled."""

    target: TargetInput
    period: BudgetPeriod
    limit_micros: Micros
    auto_disable: bool = False


@strawberry.input
class UpdateBudgetInput(Keyed):
    """New values; absent ones stay."""

    id: strawberry.ID
    limit_micros: Micros | None = None
    auto_disable: bool | None = None


@strawberry.input
class EnableBudgetInput(Keyed):
    """The budget to lift the stop of."""

    id: strawberry.ID


@strawberry.type
class BudgetPayload(Payload):
    """The budget."""

    budget: Budget | None = None


def budget_of(message: pb.Budget) -> Budget:
    """Read a budget from the contract's message."""
    return Budget(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        target_id=strawberry.ID(message.target_id),
        period=BudgetPeriod(message.period),
        limit_micros=Micros(message.limit_micros),
        auto_disable=message.auto_disable,
        disabled=message.disabled,
        settled_micros=Micros(message.settled_micros),
        held_micros=Micros(message.held_micros),
        window_start_time=time_of(message.window_start_time),
        create_time=time_of(message.create_time),
    )


async def budgets(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Budget]:
    """Read one page of an organization's budgets."""
    request = pb.ListBudgetsRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.budgets.ListBudgets, request)
    return connection(budget_of, answer.budgets, answer.next_page_token)


@strawberry.type
class BudgetMutations:
    """Cap spending."""

    @mutation
    async def create_budget(self, info: Info, input: CreateBudgetInput) -> BudgetPayload | None:
        """Open a cap that counts at once, with what its window has spent and holds already."""
        request = pb.CreateBudgetRequest(
            target_id=target_id(input.target),
            period=pb.Period.ValueType(input.period.value),
            limit_micros=input.limit_micros,
            auto_disable=input.auto_disable,
            request_id=key_of(input),
        )
        return BudgetPayload(
            budget=budget_of(await info.context.call(info.context.stubs.budgets.CreateBudget, request))
        )

    @mutation
    async def update_budget(self, info: Info, input: UpdateBudgetInput) -> BudgetPayload | None:
        """Change the limit or autoDisable; nothing in flight dies of it."""
        request = pb.UpdateBudgetRequest(
            budget_id=input.id,
            limit_micros=input.limit_micros,
            auto_disable=input.auto_disable,
            request_id=key_of(input),
        )
        return BudgetPayload(
            budget=budget_of(await info.context.call(info.context.stubs.budgets.UpdateBudget, request))
        )

    @mutation
    async def enable_budget(self, info: Info, input: EnableBudgetInput) -> BudgetPayload | None:
        """Lift the stop that autoDisable put on the target."""
        request = pb.EnableBudgetRequest(budget_id=input.id, request_id=key_of(input))
        return BudgetPayload(
            budget=budget_of(await info.context.call(info.context.stubs.budgets.EnableBudget, request))
        )
