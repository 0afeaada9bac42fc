"""Policies: what agents may ask of models. The most restrictive of the four levels above an agent wins."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime
from typing import Any

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import Micros, optional_time, time_of
from graphql_edge.schema.targets import TargetInput, target_id
from mandate.gateway.v1 import policies_pb2 as pb

NUMBERS = {  # the contract's names of numbers, and ours
    "max_tokens_per_request": "max_tokens_per_request",
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "max_cost_micros_per_request": "max_cost_micros_per_request",
}


@strawberry.type
class Policy:
    """Limits of the agents at and below a target; null is no limit of this kind, an empty list allows nothing."""

    id: strawberry.ID
    organization_id: strawberry.ID
    target_id: strawberry.ID
    name: str
    allowed_models: list[str] | None
    allowed_tools: list[str] | None
    allowed_endpoints: list[str] | None
    allowed_providers: list[str] | None
    max_tokens_per_request: int | None
    rpm: int | None
    tpm: int | None
    max_cost_micros_per_request: Micros | None
    cut_abandoned_streams: bool
    create_time: datetime
    update_time: datetime | None
    remove_time: datetime | None


@strawberry.input
class Limits:
    """What a policy may limit: `rpm` and `tpm` are requests and tokens a minute; * in a name is any run of characters.

    Endpoints are chat.completions, responses, embeddings, messages, or * alone. `cutAbandonedStreams` ends a stream
    whose client has left instead of reading it to its end.
    """

    allowed_models: list[str] | None = strawberry.UNSET
    allowed_tools: list[str] | None = strawberry.UNSET
    allowed_endpoints: list[str] | None = strawberry.UNSET
    allowed_providers: list[str] | None = strawberry.UNSET
    max_tokens_per_request: int | None = strawberry.UNSET
    rpm: int | None = strawberry.UNSET
    tpm: int | None = strawberry.UNSET
    max_cost_micros_per_request: Micros | None = strawberry.UNSET
    cut_abandoned_streams: bool | None = strawberry.UNSET


@strawberry.input
class CreatePolicyInput(Limits, Keyed):
    """A rule; `rpm` and `tpm` are requests and tokens a minute; * in a name is any run of characters."""

    target: TargetInput
    name: str = "policy"


@strawberry.input
class UpdatePolicyInput(Limits, Keyed):
    """New values: absent ones stay, null lifts a limit."""

    id: strawberry.ID
    name: str | None = None


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
        allowed_tools=list(message.allowed_tools.names) if message.HasField("allowed_tools") else None,
        allowed_endpoints=list(message.allowed_endpoints.names) if message.HasField("allowed_endpoints") else None,
        allowed_providers=list(message.allowed_providers.names) if message.HasField("allowed_providers") else None,
        max_tokens_per_request=message.max_tokens_per_request if message.HasField("max_tokens_per_request") else None,
        rpm=message.requests_per_minute if message.HasField("requests_per_minute") else None,
        tpm=message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        max_cost_micros_per_request=Micros(message.max_cost_micros_per_request)
        if message.HasField("max_cost_micros_per_request")
        else None,
        cut_abandoned_streams=message.cut_abandoned_streams,
        create_time=time_of(message.create_time),
        update_time=optional_time(message.update_time),
        remove_time=optional_time(message.remove_time),
    )


def limits_of(given: Limits) -> dict[str, Any]:
    """Return the contract's fields for the limits that are given; null and absent ones are None."""
    models = given.allowed_models
    limits: dict[str, Any] = {
        "allowed_models": pb.ModelList(models=models) if isinstance(models, list) else None,
        "cut_abandoned_streams": given.cut_abandoned_streams is True,
    }
    for name in ("allowed_tools", "allowed_endpoints", "allowed_providers"):
        names = getattr(given, name)
        limits[name] = pb.NameList(names=names) if isinstance(names, list) else None
    for name, own in NUMBERS.items():
        number = getattr(given, own)
        limits[name] = number if isinstance(number, int) else None
    return limits


async def policies(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Policy]:
    """Read one page of an organization's policies."""
    request = pb.ListPoliciesRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.policies.ListPolicies, request)
    return connection(policy_of, answer.policies, answer.next_page_token)


@strawberry.type
class PolicyMutations:
    """Add, change and remove rules."""

    @mutation
    async def create_policy(self, info: Info, input: CreatePolicyInput) -> PolicyPayload | None:
        """Add a rule to one organization, workspace, agent group or agent."""
        request = pb.CreatePolicyRequest(
            target_id=target_id(input.target), name=input.name, request_id=key_of(input), **limits_of(input)
        )
        return PolicyPayload(
            policy=policy_of(await info.context.call(info.context.stubs.policies.CreatePolicy, request))
        )

    @mutation
    async def update_policy(self, info: Info, input: UpdatePolicyInput) -> PolicyPayload | None:
        """Change a policy's name and limits."""
        request = pb.UpdatePolicyRequest(
            policy=pb.Policy(id=input.id, name=input.name or "", **limits_of(input)), request_id=key_of(input)
        )
        if input.name is not None:
            request.update_mask.paths.append("name")
        for name in limits_of(input):
            if getattr(input, NUMBERS.get(name, name)) is not strawberry.UNSET:
                request.update_mask.paths.append(name)
        changed = await info.context.call(info.context.stubs.policies.UpdatePolicy, request)
        return PolicyPayload(policy=policy_of(changed))

    @mutation
    async def remove_policy(self, info: Info, input: RemovePolicyInput) -> PolicyPayload | None:
        """End a policy."""
        request = pb.RemovePolicyRequest(policy_id=input.id, request_id=key_of(input))
        return PolicyPayload(
            policy=policy_of(await info.context.call(info.context.stubs.policies.RemovePolicy, request))
        )
