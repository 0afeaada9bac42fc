"""Agents' API keys."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import UTC, datetime

import strawberry
from google.protobuf.timestamp_pb2 import Timestamp

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload, invalid
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import optional_time, time_of
from mandate.identity.v1 import keys_pb2 as pb


@strawberry.type
class ApiKey:
    """An agent's key without its secret; `prefix` is how the secret begins, to tell keys apart."""

    id: strawberry.ID
    agent_id: strawberry.ID
    name: str
    prefix: str
    create_time: datetime
    expires_at: datetime | None
    revoke_time: datetime | None


@strawberry.input
class IssueApiKeyInput(Keyed):
    """A new key of an agent; without `expiresAt` it holds until it is revoked."""

    agent_id: strawberry.ID
    name: str
    expires_at: datetime | None = None


@strawberry.input
class RevokeApiKeyInput(Keyed):
    """The key to end."""

    id: strawberry.ID


@strawberry.type
class IssueApiKeyPayload(Payload):
    """The key; `plaintext` is told this once and never again, not even to a repeat with the same idempotency key."""

    api_key: ApiKey | None = None
    plaintext: str | None = None
    replayed: bool = False


@strawberry.type
class RevokeApiKeyPayload(Payload):
    """The key that ended."""

    api_key: ApiKey | None = None


def api_key_of(message: pb.ApiKey) -> ApiKey:
    """Read a key from the contract's message."""
    return ApiKey(
        id=strawberry.ID(message.id),
        agent_id=strawberry.ID(message.agent_id),
        name=message.name,
        prefix=message.prefix,
        create_time=time_of(message.create_time),
        expires_at=optional_time(message.expire_time),
        revoke_time=optional_time(message.revoke_time),
    )


async def api_keys(operation: Operation, agent_id: str, first: int, after: str | None) -> Connection[ApiKey]:
    """Read one page of an agent's keys."""
    request = pb.ListApiKeysRequest(agent_id=agent_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.keys.ListApiKeys, request)
    return connection(api_key_of, answer.api_keys, answer.next_page_token)


@strawberry.type
class KeyMutations:
    """Issue and revoke."""

    @mutation
    async def issue_api_key(self, info: Info, input: IssueApiKeyInput) -> IssueApiKeyPayload | None:
        """Make a key for an agent."""
        request = pb.IssueApiKeyRequest(
            agent_id=input.agent_id,
            name=input.name,
            expire_time=_stamp(input.expires_at),
            request_id=key_of(input),
        )
        made = await info.context.call(info.context.stubs.keys.IssueApiKey, request)
        return IssueApiKeyPayload(
            api_key=api_key_of(made.api_key), plaintext=made.plaintext or None, replayed=made.replayed
        )

    @mutation
    async def revoke_api_key(self, info: Info, input: RevokeApiKeyInput) -> RevokeApiKeyPayload | None:
        """End a key at every gateway within a second."""
        request = pb.RevokeApiKeyRequest(api_key_id=input.id, request_id=key_of(input))
        revoked = await info.context.call(info.context.stubs.keys.RevokeApiKey, request)
        return RevokeApiKeyPayload(api_key=api_key_of(revoked))


def _stamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    try:
        stamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (OverflowError, ValueError):
        raise invalid("expiresAt", "must be a time of the years 1 to 9999, in UTC too") from None
    return stamp
