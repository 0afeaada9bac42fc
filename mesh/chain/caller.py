"""Who is calling: the service by its certificate's SPIFFE id, the person by the mesh token that came along."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mesh import caller, tokens
from mesh.chain import Call, Context, Step
from mesh.errors import Unauthenticated
from mesh.secret import Secret

BEARER = "Bearer "


def step(keys: tokens.KeySource, trust_domain: str) -> Step:
    """Build the step; `keys` verifies mesh tokens, and only services of `trust_domain` are any.

    An authority that an operator brings may certify the workloads of other domains too.
    """

    @asynccontextmanager
    async def identify(call: Call) -> AsyncGenerator[None]:
        service = _service_of(call.context, trust_domain)
        sent = call.metadata("authorization")
        person = None
        if sent is not None and call.rule is not None and call.rule.needs_person:
            if not sent.startswith(BEARER):
                raise Unauthenticated("BAD_TOKEN", "authorization must be a bearer token")
            person = await tokens.verify(Secret(sent[len(BEARER) :]), keys)
        with caller.acting(caller.Caller(service, person)):
            yield

    return identify


def _service_of(context: Context, trust_domain: str) -> str:
    ids = context.auth_context().get("peer_spiffe_id") or ()
    for spiffe_id in ids:
        scheme, _, rest = bytes(spiffe_id).decode().partition("://")
        domain, _, path = rest.partition("/")
        if scheme == "spiffe" and domain == trust_domain and path and "/" not in path:
            return path
    raise Unauthenticated("NO_MESH_IDENTITY", "the certificate names no service of this mesh")
