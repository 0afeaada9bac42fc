"""One GraphQL operation: who asks for it, the calls it makes, and the login it leaves behind. No GraphQL in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc

from graphql_edge.stubs import Stubs
from mandate.identity.v1 import people_pb2
from mesh import caller, client, ids
from mesh.caller import Caller, Person
from mesh.errors import Code, MeshError
from mesh.secret import Secret

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "edge"
RETRYABLE = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED}

Request = TypeVar("Request", bound="Message")
Response = TypeVar("Response", bound="Message")


@dataclass(frozen=True, slots=True)
class Session:
    """A login that just began."""

    access_token: Secret
    lifetime_seconds: int


@dataclass(slots=True)
class Operation:
    """What the resolvers of one operation share.

    `calls` counts RPCs; `began` is the login that the answer's cookie shall hold and `ended` says that it shall go;
    `forged` says why a cookie that came along was not taken.
    """

    stubs: Stubs
    access_token: Secret | None = None
    request_id: str = field(default_factory=lambda: ids.new(ids.Kind.REQUEST))
    who: Caller = field(default_factory=lambda: Caller(SERVICE))
    calls: int = 0
    began: Session | None = None
    ended: bool = False
    forged: str = ""

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """Make one call for the person behind the operation; a MeshError's details name the service that raised it."""
        self.calls += 1
        try:
            with caller.acting(self.who):
                return await client.call(method, request)
        except MeshError as error:
            error.details.setdefault("service", request.DESCRIPTOR.file.package.split(".")[1])
            raise

    async def authenticate(self) -> None:
        """Exchange the access token, if there is one, for the mesh token that every service verifies.

        Done once, and again where the operation itself changed what the person may do.
        """
        if self.access_token is None:
            return
        request = people_pb2.AuthenticateRequest(access_token=self.access_token.reveal())
        answer = await self.call(self.stubs.people.Authenticate, request)
        # Grants stay in the token: the services read them, the edge decides nothing by them.
        self.who = Caller(SERVICE, Person(answer.person_id, "", {}, Secret(answer.mesh_token)))


def is_retryable(error: MeshError) -> bool:
    """Return whether asking again later may help."""
    return error.code in RETRYABLE or error.retry_after_ms is not None
