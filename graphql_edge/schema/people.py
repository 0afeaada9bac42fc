"""People: sign up, log in, log out, and who one is."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Session
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, field, key_of, mutation, refusable
from graphql_edge.schema.pages import SIZE_DEFAULT, Connection, connection, size_of
from graphql_edge.schema.scalars import time_of
from mandate.identity.v1 import directory_pb2, people_pb2
from mesh import ids
from mesh.clock import SystemClock
from mesh.errors import Code
from mesh.secret import Secret

UNKNOWN_PERSON = frozenset({Code.UNAUTHENTICATED})


@strawberry.type
class OrganizationSummary:
    """An organization that one belongs to; `role` is owner, admin, member, billing or viewer."""

    id: strawberry.ID
    name: str
    role: str | None
    create_time: datetime


@strawberry.type
class Person:
    """A human user."""

    id: strawberry.ID
    email: str
    name: str
    create_time: datetime
    roles: strawberry.Private[dict[str, str]]

    @field
    async def organizations(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[OrganizationSummary] | None:
        """Page through one's organizations, oldest first."""
        request = directory_pb2.ListOrganizationsRequest(page_size=size_of(first), page_token=after or "")
        answer = await info.context.call(info.context.stubs.directory.ListOrganizations, request)

        def summary(organization: directory_pb2.Organization) -> OrganizationSummary:
            return OrganizationSummary(
                id=strawberry.ID(organization.id),
                name=organization.name,
                role=self.roles.get(organization.id),
                create_time=time_of(organization.create_time),
            )

        return connection(summary, answer.organizations, answer.next_page_token)


def person_of(message: people_pb2.Person) -> Person:
    """Read a person from the contract's message."""
    return Person(
        id=strawberry.ID(message.id),
        email=message.email,
        name=message.name,
        create_time=time_of(message.create_time),
        roles={membership.organization_id: membership.role for membership in message.memberships},
    )


@strawberry.input
class SignUpInput:
    """Who signs up; a password has 10 to 1,024 characters. A repeat finds the email taken."""

    email: str
    password: str
    name: str


@strawberry.input
class LogInInput:
    """Who logs in; each time is another session."""

    email: str
    password: str


@strawberry.input
class LogOutInput(Keyed):
    """The session that ends is the one that asks."""


@strawberry.type
class SessionPayload(Payload):
    """A login; browsers also get it as a cookie that scripts can't read."""

    access_token: str | None = None
    expires_at: datetime | None = None
    person: Person | None = None


@strawberry.type
class LogOutPayload(Payload):
    """Whether there was a session to end."""

    logged_out: bool = False


@strawberry.type
class PeopleQueries:
    """Who one is."""

    @field
    async def me(self, info: Info) -> Person | None:
        """Return the person who is logged in, null when nobody is."""
        if info.context.who.person is None:
            return None
        return person_of(await info.context.call(info.context.stubs.people.GetMe, people_pb2.GetMeRequest()))


@strawberry.type
class PeopleMutations:
    """Sessions."""

    @mutation
    async def sign_up(self, info: Info, input: SignUpInput) -> SessionPayload | None:
        """Create a person and log them in."""
        request = people_pb2.SignUpRequest(
            email=input.email, password=input.password, name=input.name, request_id=ids.new(ids.Kind.REQUEST)
        )
        return await _begun(info, await info.context.call(info.context.stubs.people.SignUp, request))

    @refusable(also=UNKNOWN_PERSON)
    async def log_in(self, info: Info, input: LogInInput) -> SessionPayload | None:
        """Open a session."""
        request_id = ids.new(ids.Kind.REQUEST)
        request = people_pb2.LogInRequest(email=input.email, password=input.password, request_id=request_id)
        return await _begun(info, await info.context.call(info.context.stubs.people.LogIn, request))

    @mutation
    async def log_out(self, info: Info, input: LogOutInput | None = None) -> LogOutPayload | None:
        """End the session that asks."""
        token = info.context.access_token
        if token is not None:
            request = people_pb2.LogOutRequest(access_token=token.reveal(), request_id=key_of(input or LogOutInput()))
            await info.context.call(info.context.stubs.people.LogOut, request)
        info.context.ended = True
        return LogOutPayload(logged_out=token is not None)


async def _begun(info: Info, session: people_pb2.Session) -> SessionPayload:
    expires_at, token = time_of(session.expire_time), session.access_token
    lifetime = expires_at - SystemClock().now()
    info.context.began = Session(Secret(token), max(0, int(lifetime.total_seconds())))
    info.context.access_token = Secret(token)
    await info.context.authenticate()  # what is asked of `person` below is asked in his name
    return SessionPayload(access_token=token, expires_at=expires_at, person=person_of(session.person))
