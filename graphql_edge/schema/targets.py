"""What a budget or a policy stands on: exactly one object of the hierarchy."""

from __future__ import annotations

import strawberry

from graphql_edge.schema.errors import invalid


@strawberry.input
class TargetInput:
    """Exactly one of the four."""

    organization_id: strawberry.ID | None = None
    workspace_id: strawberry.ID | None = None
    agent_group_id: strawberry.ID | None = None
    agent_id: strawberry.ID | None = None


def target_id(target: TargetInput) -> str:
    """Return the one id that was given; INVALID_FIELD when it is none or several."""
    ids = (target.organization_id, target.workspace_id, target.agent_group_id, target.agent_id)
    given = [found for found in ids if found is not None]
    if len(given) != 1:
        raise invalid("target", "must have exactly one of organizationId, workspaceId, agentGroupId and agentId")
    return given[0]
