"""An organization's own keys at model providers. Their secrets go in and never come out."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import optional_time, time_of
from mandate.vault.v1 import credentials_pb2 as pb


@strawberry.type
class ProviderCredential:
    """A provider key without its secret; `hint` is how the secret ends. The newest of a provider is the one in use."""

    id: strawberry.ID
    organization_id: strawberry.ID
    provider: str
    label: str
    base_url: str | None
    hint: str
    create_time: datetime
    remove_time: datetime | None


@strawberry.input
class AddProviderCredentialInput(Keyed):
    """A provider's key; `provider` is openai or anthropic. Without `baseUrl` it is used at the provider's address."""

    organization_id: strawberry.ID
    provider: str
    secret: str
    label: str = ""
    base_url: str | None = None


@strawberry.input
class RemoveProviderCredentialInput(Keyed):
    """The credential to destroy."""

    id: strawberry.ID


@strawberry.type
class ProviderCredentialPayload(Payload):
    """The credential, without its secret."""

    provider_credential: ProviderCredential | None = None


def credential_of(message: pb.Credential) -> ProviderCredential:
    """Read a credential from the contract's message."""
    return ProviderCredential(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        provider=message.provider,
        label=message.label,
        base_url=message.base_url or None,
        hint=message.hint,
        create_time=time_of(message.create_time),
        remove_time=optional_time(message.remove_time),
    )


async def provider_credentials(
    operation: Operation, organization_id: str, first: int, after: str | None
) -> Connection[ProviderCredential]:
    """Read one page of an organization's credentials."""
    request = pb.ListCredentialsRequest(
        organization_id=organization_id, page_size=size_of(first), page_token=after or ""
    )
    answer = await operation.call(operation.stubs.credentials.ListCredentials, request)
    return connection(credential_of, answer.credentials, answer.next_page_token)


@strawberry.type
class CredentialMutations:
    """Add and remove."""

    @mutation
    async def add_provider_credential(
        self, info: Info, input: AddProviderCredentialInput
    ) -> ProviderCredentialPayload | None:
        """Seal a provider's key, for the organization's agents to be served with."""
        request = pb.AddCredentialRequest(
            organization_id=input.organization_id,
            provider=input.provider,
            secret=input.secret,
            label=input.label,
            base_url=input.base_url or "",
            request_id=key_of(input),
        )
        made = await info.context.call(info.context.stubs.credentials.AddCredential, request)
        return ProviderCredentialPayload(provider_credential=credential_of(made))

    @mutation
    async def remove_provider_credential(
        self, info: Info, input: RemoveProviderCredentialInput
    ) -> ProviderCredentialPayload | None:
        """Destroy a credential's secret; the record of it stays."""
        request = pb.RemoveCredentialRequest(credential_id=input.id, request_id=key_of(input))
        removed = await info.context.call(info.context.stubs.credentials.RemoveCredential, request)
        return ProviderCredentialPayload(provider_credential=credential_of(removed))
