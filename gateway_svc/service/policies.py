"""PolicyService: the rules that people put on organizations, workspaces, groups and agents."""

from __future__ import annotations

from gateway_svc import wire
from gateway_svc.service.resolver import NODES, Resolver
from gateway_svc.store import policies as store
from gateway_svc.terms import checked_name, checked_terms
from mandate.gateway.v1 import policies_pb2 as pb
from mandate.gateway.v1 import policies_pb2_grpc as rpc
from mesh import ids, paging
from mesh.audit import Fact
from mesh.chain import Context
from mesh.db import Connection, Database
from mesh.errors import FailedPrecondition, NotFound, invalid
from mesh.idempotency import once

PEPPER = b"policies hold no secrets"
TARGETS = (ids.Kind.ORGANIZATION, *NODES)
LIMITS = ("max_tokens_per_request", "requests_per_minute", "tokens_per_minute")


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
            raise NotFound("NOT_FOUND", f"no target_id {request.target_id!r}", field="target_id")

        async def make(tx: Connection) -> pb.Policy:
            if await store.count_on(tx, request.target_id) >= store.POLICIES_PER_TARGET_MAX:
                raise FailedPrecondition("TOO_MANY_POLICIES", f"{request.target_id} has as many policies as it may")
            new = store.NewPolicy(ids.new(ids.Kind.POLICY), organization_id, request.target_id, name, terms)
            return wire.policy_message(await store.add(tx, new))

        return (await once(self._db, request, pb.Policy, make, audited=_created, pepper=PEPPER)).answer

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        page = paging.page_of(request.page_size, request.page_token)
        found = await store.page(self._db, request.organization_id, page.after or "", page.size + 1)
        token = paging.next_token(page, [stored.id for stored in found])
        policies = [wire.policy_message(stored) for stored in found[: page.size]]
        return pb.ListPoliciesResponse(policies=policies, next_page_token=token)

    async def RemovePolicy(self, request: pb.RemovePolicyRequest, context: Context) -> pb.Policy:
        async def make(tx: Connection) -> pb.Policy:
            removed = await store.remove(tx, request.policy_id)
            if removed is None:
                raise NotFound("NOT_FOUND", f"no policy_id {request.policy_id!r}", field="policy_id")
            return wire.policy_message(removed)

        return (await once(self._db, request, pb.Policy, make, audited=_removed, pepper=PEPPER)).answer


def _created(made: pb.Policy) -> Fact:
    limits: dict[str, int | str | list[str]] = {field: getattr(made, field) for field in LIMITS if made.HasField(field)}
    if made.HasField("allowed_models"):
        limits["allowed_models"] = list(made.allowed_models.models)
    return Fact(made.organization_id, "policy.created", made.id, {"target_id": made.target_id} | limits)


def _removed(made: pb.Policy) -> Fact:
    return Fact(made.organization_id, "policy.removed", made.id, {"target_id": made.target_id})
