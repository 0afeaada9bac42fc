"""The only place that authorizes: the contract's rule against the calling service and the person behind it.

An object of another organization answers like one that does not exist.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from mesh import access, caller, ids
from mesh.chain import Call, Step
from mesh.errors import NotFound, PermissionDenied, Unauthenticated

ScopeResolver = Callable[[str], Awaitable[str | None]]


async def organizations_only(object_id: str) -> str | None:
    """Resolve scopes for a service whose rules name nothing but organizations."""
    return object_id if ids.kind_of(object_id) is ids.Kind.ORGANIZATION else None


def step(resolve: ScopeResolver) -> Step:
    """Build the step; `resolve` says which organization an object of this service belongs to, None if it is unknown."""

    @asynccontextmanager
    async def authorize(call: Call) -> AsyncGenerator[None]:
        if call.rule is not None:
            await _check(call.rule, call, resolve)
        yield

    return authorize


async def _check(rule: access.Rule, call: Call, resolve: ScopeResolver) -> None:
    who = caller.current()
    if who.service not in rule.callers:
        raise PermissionDenied("CALLER_NOT_ALLOWED", f"{who.service} may not call {call.method}", service=who.service)
    if not rule.needs_person:
        return
    if who.person is None:
        raise Unauthenticated("NOT_LOGGED_IN", "nobody is logged in")
    if rule.permission == access.SELF:
        return
    object_id = access.scope_of(rule, call.request)
    kind = ids.kind_of(object_id)
    if rule.scope[-1] == "organization_id" and kind is not ids.Kind.ORGANIZATION:
        kind = None  # a part of an organization does not stand for the whole of it
    organization_id = await resolve(object_id) if kind is not None else None
    role = who.person.grants.get(organization_id) if organization_id is not None else None
    if role is None:
        raise NotFound("NOT_FOUND", f"no {'.'.join(rule.scope)} {object_id!r}"[:200], field=".".join(rule.scope))
    if not access.permits(role, rule.permission):
        raise PermissionDenied(
            "PERMISSION_DENIED", f"the role {role} does not hold {rule.permission}", permission=rule.permission
        )
