"""Policies: what agents may ask of models. The most restrictive of the four levels above an agent wins."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import optional_time, time_of
from graphql_edge.schema.targets import TargetInput, target_id
from mandate.gateway.v1 import policies_pb2 as pb


@strawberry.type
class Policy:
    """Limits of the agents at and below a target; null is no limit of this kind, no allowed model is none at all."""

    id: strawberry.ID
    organization_id: strawberry.ID
    target_id: strawberry.ID
    name: str
    allowed_models: list[str] | None
    max_tokens_per_request: int | None
    rpm: int | None
    tpm: int | None
    create_time: datetime
    remove_time: datetime | None


@strawberry.input
class CreatePolicyInput(Keyed):
    """A rule; `rpm` and `tpm` are requests and tokens a minute. A model may end in * (a prefix)."""

    target: TargetInput
    name: str = "policy"
    allowed_models: list[str] | None = None
    max_tokens_per_request: int | None = None
    rpm: int | None = None
    tpm: int | None = None


@strawberry.input
class RemovePolicyInput(Keyed):
    """The policy to end."""

    id: strawberry.ID


@strawberry.type
class PolicyPayload(Payload):
    """The policy."""

    policy: Policy | None = None


def policy_of(message: pb.Policy) -> Policy:
    """Read a policy from the contract's message."""
    return Policy(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        target_id=strawberry.ID(message.target_id),
        name=message.name,
        allowed_models=list(message.allowed_models.models) if message.HasField("allowed_models") else None,
        max_tokens_per_request=message.max_tokens_per_request if message.HasField("max_tokens_per_request") else None,
        rpm=message.requests_per_minute if message.HasField("requests_per_minute") else None,
        tpm=message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        create_time=time_of(message.create_time),
        remove_time=optional_time(message.remove_time),
    )


async def policies(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Policy]:
    """Read one page of an organization's policies."""
    request = pb.ListPoliciesRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.policies.ListPolicies, request)
    return connection(policy_of, answer.policies, answer.next_page_token)


@strawberry.type
class PolicyMutations:
    """Add and remove rules."""

    @mutation
    async def create_policy(self, info: Info, input: CreatePolicyInput) -> PolicyPayload | None:
        """Add a rule to one organization, workspace, agent group or agent."""
        models = None if input.allowed_models is None else pb.ModelList(models=input.allowed_models)
        request = pb.CreatePolicyRequest(
            target_id=target_id(input.target),
            name=input.name,
            allowed_models=models,
            max_tokens_per_request=input.max_tokens_per_request,
            requests_per_minute=input.rpm,
            tokens_per_minute=input.tpm,
            request_id=key_of(input),
        )
        return PolicyPayload(
            policy=policy_of(await info.context.call(info.context.stubs.policies.CreatePolicy, request))
        )

    @mutation
    async def remove_policy(self, info: Info, input: RemovePolicyInput) -> PolicyPayload | None:
        """End a policy."""
        request = pb.RemovePolicyRequest(policy_id=input.id, request_id=key_of(input))
        return PolicyPayload(
            policy=policy_of(await info.context.call(info.context.stubs.policies.RemovePolicy, request))
        )
