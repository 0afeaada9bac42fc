"""How an organization wants its books kept."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.scalars import optional_time
from mandate.ledger.v1 import rules_pb2 as pb


@strawberry.enum
class UncertainRule(Enum):
    """What becomes of holds whose outcome nobody knows: they wait, are given back, or are charged in full."""

    LIST = pb.UNCERTAIN_RULE_LIST
    RELEASE = pb.UNCERTAIN_RULE_RELEASE
    POST = pb.UNCERTAIN_RULE_POST


@strawberry.type
class LedgerRules:
    """The rules in force; days of reports and windows of budgets begin at midnights of `timeZone`."""

    version: int
    time_zone: str
    uncertain_holds: UncertainRule
    default_price: str
    update_time: datetime | None


@strawberry.input
class UpdateLedgerRulesInput(Keyed):
    """New values; absent ones stay. `defaultPrice` is the provider/model whose price models without one have."""

    organization_id: strawberry.ID
    time_zone: str | None = None
    uncertain_holds: UncertainRule | None = None
    default_price: str | None = None


@strawberry.type
class LedgerRulesPayload(Payload):
    """The rules."""

    rules: LedgerRules | None = None


def rules_of(message: pb.Rules) -> LedgerRules:
    """Read rules from the contract's message."""
    return LedgerRules(
        version=message.version,
        time_zone=message.time_zone,
        uncertain_holds=UncertainRule(message.uncertain_holds),
        default_price=message.default_price,
        update_time=optional_time(message.update_time),
    )


async def rules(operation: Operation, organization_id: str) -> LedgerRules:
    """Read an organization's rules."""
    request = pb.GetRulesRequest(organization_id=organization_id)
    return rules_of(await operation.call(operation.stubs.rules.GetRules, request))


@strawberry.type
class RulesMutations:
    """Change how the books are kept."""

    @mutation
    async def update_ledger_rules(self, info: Info, input: UpdateLedgerRulesInput) -> LedgerRulesPayload | None:
        """Put new rules in force; what was decided by the rules of before stays as it is."""
        request = pb.UpdateRulesRequest(rules=pb.Rules(organization_id=input.organization_id), request_id=key_of(input))
        if input.time_zone is not None:
            request.rules.time_zone = input.time_zone
            request.update_mask.paths.append("time_zone")
        if input.uncertain_holds is not None:
            request.rules.uncertain_holds = pb.UncertainRule.ValueType(input.uncertain_holds.value)
            request.update_mask.paths.append("uncertain_holds")
        if input.default_price is not None:
            request.rules.default_price = input.default_price
            request.update_mask.paths.append("default_price")
        changed = await info.context.call(info.context.stubs.rules.UpdateRules, request)
        return LedgerRulesPayload(rules=rules_of(changed))
