"""PolicyService: the rules that people put on organizations, workspaces, groups and agents."""

from __future__ import annotations

from gateway_svc import rules, wire
from gateway_svc.policies import policy
from gateway_svc.service.resolver import TARGETS, Resolver
from gateway_svc.store import change_log
from gateway_svc.store import policies as store
from gateway_svc.terms import LIMITS_MAX, LISTS, changed_terms, checked_asked, checked_name, checked_terms
from gateway_svc.verdicts import Level, explain
from mandate.gateway.v1 import policies_pb2 as pb
from mandate.gateway.v1 import policies_pb2_grpc as rpc
from mesh import ids, paging
from mesh.audit import Fact
from mesh.chain import Context
from mesh.db import Connection, Database
from mesh.errors import FailedPrecondition, NotFound, invalid
from mesh.idempotency import once

PEPPER = b"policies hold no secrets"


class Policies(rpc.PolicyServiceServicer):
    """Keeps policies."""

    def __init__(self, db: Database, resolve: Resolver) -> None:
        self._db = db
        self._resolve = resolve

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: Context) -> pb.Policy:
        if ids.kind_of(request.target_id) not in TARGETS:
            raise invalid("target_id", "must be an organization, workspace, agent group or agent")
        name, terms = checked_name(request.name), checked_terms(wire.terms_of(request))
        organization_id = await self._resolve(request.target_id)
        if organization_id is None:
            raise _not_found("target_id", request.target_id)

        async def make(tx: Connection) -> pb.Policy:
            if await store.count_on(tx, request.target_id) >= store.POLICIES_PER_TARGET_MAX:
                raise FailedPrecondition("TOO_MANY_POLICIES", f"{request.target_id} has as many policies as it may")
            new = store.NewPolicy(ids.new(ids.Kind.POLICY), organization_id, request.target_id, name, terms)
            return await _told(tx, await store.add(tx, new))

        return (await once(self._db, request, pb.Policy, make, audited=_created, pepper=PEPPER)).answer

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        page = paging.page_of(request.page_size, request.page_token)
        found = await store.page(self._db, request.organization_id, page.after or "", page.size + 1)
        token = paging.next_token(page, [stored.id for stored in found])
        policies = [wire.policy_message(stored) for stored in found[: page.size]]
        return pb.ListPoliciesResponse(policies=policies, next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.Policy:
        named, wanted = frozenset(request.update_mask.paths), request.policy
        name = checked_name(wanted.name) if "name" in named else None

        async def make(tx: Connection) -> pb.Policy:
            before = await store.locked(tx, wanted.id)
            if before is None:
                raise _not_found("policy.id", wanted.id)
            if before.removed_at is not None:
                raise FailedPrecondition("POLICY_REMOVED", f"{wanted.id} has ended")
            terms = changed_terms(before.terms, wire.terms_of(wanted), named)
            return await _told(tx, await store.change(tx, wanted.id, name or before.name, terms))

        return (await once(self._db, request, pb.Policy, make, audited=_updated, pepper=PEPPER)).answer

    async def RemovePolicy(self, request: pb.RemovePolicyRequest, context: Context) -> pb.Policy:
        async def make(tx: Connection) -> pb.Policy:
            removed = await store.remove(tx, request.policy_id)
            if removed is None:
                raise _not_found("policy_id", request.policy_id)
            return await _told(tx, removed)

        return (await once(self._db, request, pb.Policy, make, audited=_removed, pepper=PEPPER)).answer

    async def ExplainPolicies(self, request: pb.ExplainPoliciesRequest, context: Context) -> pb.ExplainPoliciesResponse:
        asked = checked_asked(wire.asked_of(request.asked))
        path = await self._resolve.path(request.node_id)
        if path is None:
            raise _not_found("node_id", request.node_id)
        _, levels = await rules.levels(self._db, path)
        if request.HasField("proposed"):
            levels = (*levels, _proposed(request.proposed, path))
        return wire.explanation_message(explain(levels, asked))


async def _told(tx: Connection, stored: store.StoredPolicy) -> pb.Policy:
    """Let every gateway know of a policy that was written."""
    await change_log.record(tx, change_log.policies_on(stored.target_id))
    return wire.policy_message(stored)


def _proposed(message: pb.Policy, path: rules.Path) -> Level:
    if message.target_id not in path:
        raise invalid("proposed.target_id", "must be the node that is asked about, or above it")
    return Level(message.target_id, "", policy(checked_terms(wire.terms_of(message)), message.target_id))


def _not_found(field: str, object_id: str) -> NotFound:
    return NotFound("NOT_FOUND", f"no {field} {object_id!r}", field=field)


def _created(made: pb.Policy) -> Fact:
    return _fact("policy.created", made)


def _updated(made: pb.Policy) -> Fact:
    return _fact("policy.updated", made)


def _removed(made: pb.Policy) -> Fact:
    return _fact("policy.removed", made)


def _fact(action: str, made: pb.Policy) -> Fact:
    """Say what was done, with every limit that the policy has after it."""
    terms = wire.terms_of(made)
    limits = {field: limit for field in (*LISTS, *LIMITS_MAX) if (limit := getattr(terms, field)) is not None}
    cut = {"cut_abandoned_streams": True} if terms.cut_abandoned_streams else {}
    return Fact(made.organization_id, action, made.id, {"target_id": made.target_id} | limits | cut)
