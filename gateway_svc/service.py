"""PolicyService: the rules that people put on organizations, workspaces, groups and agents."""

from __future__ import annotations

import grpc

from gateway_svc import store, wire
from gateway_svc.terms import checked_name, checked_terms
from mandate.gateway.v1 import policies_pb2 as pb
from mandate.gateway.v1 import policies_pb2_grpc as rpc
from mandate.identity.v1 import directory_pb2, directory_pb2_grpc
from mesh import client, ids, paging
from mesh.audit import Fact
from mesh.chain import Context
from mesh.db import Connection, Database
from mesh.errors import FailedPrecondition, NotFound, invalid
from mesh.idempotency import once
from mesh.server import Registration

PEPPER = b"policies hold no secrets"
NODES = (ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT)
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


class Resolver:
    """Says which organization an object belongs to: ours from the table, the hierarchy's by asking identity."""

    def __init__(self, db: Database, identity: grpc.aio.Channel) -> None:
        self._db = db
        self._identity = directory_pb2_grpc.DirectoryServiceStub(identity)

    async def __call__(self, object_id: str) -> str | None:
        kind = ids.kind_of(object_id)
        if kind is ids.Kind.ORGANIZATION:
            return object_id
        if kind is ids.Kind.POLICY:
            return await store.organization_of(self._db, object_id)
        if kind not in NODES:
            return None
        try:
            request = directory_pb2.ResolveNodeRequest(node_id=object_id)
            node = await client.call(self._identity.ResolveNode, request)
        except NotFound:
            return None
        return node.organization_id


def _created(made: pb.Policy) -> Fact:
    limits: dict[str, int | str | list[str]] = {field: getattr(made, field) for field in LIMITS if made.HasField(field)}
    if made.HasField("allowed_models"):
        limits["allowed_models"] = list(made.allowed_models.models)
    return Fact(made.organization_id, "policy.created", made.id, {"target_id": made.target_id} | limits)


def _removed(made: pb.Policy) -> Fact:
    return Fact(made.organization_id, "policy.removed", made.id, {"target_id": made.target_id})


def registrations(db: Database, resolve: Resolver) -> list[Registration]:
    """Return the contracts that the gateway serves over gRPC."""
    return [Registration.of(pb, rpc, Policies(db, resolve))]
