"""What identity, the vault and the gateway write into the audit chain: one line for each mutation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from gateway_svc import service as policy_service
from mandate.gateway.v1 import policies_pb2, policies_pb2_grpc, routes_pb2, routes_pb2_grpc
from mandate.identity.v1 import directory_pb2, keys_pb2, people_pb2
from mandate.vault.v1 import credentials_pb2
from mesh import audit, caller, client, db, ids
from mesh.client import call
from mesh.errors import NotFound
from mesh.testing import House
from mesh.verification import IdentityKeys
from tests.conftest import RunningLedger
from tests.services.audit_running import chain, looping
from tests.services.gateway_running import Mesh, Tenant
from tests.services.identity_running import fresh

CONTRACTS = (people_pb2, directory_pb2, keys_pb2, credentials_pb2, policies_pb2, routes_pb2)
METHODS: list[MethodDescriptor] = [
    method
    for contract in CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
]
SECRET = "sk-that-is-nowhere-else"
ALIAS = "house-model"
TARGETS = [routes_pb2.RouteTarget(provider="mock", model="mock-model")]
NAME = "A name that a person chose"


@dataclass
class Walk:
    """A tenant on the way through every mutation, and the ids that the answers gave."""

    tenant: Tenant
    policies: policies_pb2_grpc.PolicyServiceAsyncStub
    routes: routes_pb2_grpc.RouteServiceAsyncStub
    made: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    @property
    def organization(self) -> str:
        return self.tenant.family.organization_id


def _renaming(walk: Walk) -> directory_pb2.UpdateOrganizationRequest:
    organization = directory_pb2.Organization(id=walk.organization, name=NAME)
    request = directory_pb2.UpdateOrganizationRequest(organization=organization, request_id=fresh())
    request.update_mask.paths.append("name")
    return request


def _rerouting(walk: Walk) -> routes_pb2.UpdateRouteRequest:
    route = routes_pb2.Route(id=walk.made["CreateRoute"], alias=f"{ALIAS}-2")
    request = routes_pb2.UpdateRouteRequest(route=route, request_id=fresh())
    request.update_mask.paths.append("alias")
    return request


def _loosening(walk: Walk) -> policies_pb2.UpdatePolicyRequest:
    policy = policies_pb2.Policy(
        id=walk.made["CreatePolicy"],
        name=NAME,
        allowed_models=policies_pb2.ModelList(models=["mock-*"]),
        allowed_tools=policies_pb2.NameList(names=["read_*"]),
        allowed_endpoints=policies_pb2.NameList(names=["messages"]),
        allowed_providers=policies_pb2.NameList(),
        max_tokens_per_request=8,
        requests_per_minute=9,
        tokens_per_minute=10,
        max_cost_micros_per_request=11,
        cut_abandoned_streams=True,
    )
    request = policies_pb2.UpdatePolicyRequest(policy=policy, request_id=fresh())
    request.update_mask.paths.extend(("name", *EVERY_LIMIT))
    return request


EVERY_LIMIT: dict[str, Any] = {
    "allowed_models": ["mock-*"],
    "allowed_tools": ["read_*"],
    "allowed_endpoints": ["messages"],
    "allowed_providers": [],
    "max_tokens_per_request": 8,
    "requests_per_minute": 9,
    "tokens_per_minute": 10,
    "max_cost_micros_per_request": 11,
    "cut_abandoned_streams": True,
}


@dataclass(frozen=True)
class Leaf:
    """A mutation: the action that it leaves in the chain, at which stub it is called, and with what."""

    action: str
    stub: str
    request: Callable[[Walk], Any]

    async def done(self, walk: Walk, method: str) -> str:
        """Call it and return the id of what it was done to."""
        stubs = getattr(walk if self.stub in {"policies", "routes"} else walk.tenant.mesh, self.stub)
        answer = await call(getattr(stubs, method), self.request(walk))
        walk.made[method] = answer.api_key.id if method == "IssueApiKey" else answer.id
        return walk.made[method]


LEAVES = {
    "UpdateOrganization": Leaf("organization.renamed", "directory", _renaming),
    "CreateWorkspace": Leaf(
        "workspace.created",
        "directory",
        lambda walk: directory_pb2.CreateWorkspaceRequest(
            organization_id=walk.organization, name=NAME, request_id=fresh()
        ),
    ),
    "CreateAgentGroup": Leaf(
        "agent_group.created",
        "directory",
        lambda walk: directory_pb2.CreateAgentGroupRequest(
            workspace_id=walk.made["CreateWorkspace"], name=NAME, request_id=fresh()
        ),
    ),
    "CreateAgent": Leaf(
        "agent.created",
        "directory",
        lambda walk: directory_pb2.CreateAgentRequest(
            agent_group_id=walk.made["CreateAgentGroup"], name=NAME, request_id=fresh()
        ),
    ),
    "SuspendAgent": Leaf(
        "agent.suspended",
        "directory",
        lambda walk: directory_pb2.SuspendAgentRequest(agent_id=walk.made["CreateAgent"], request_id=fresh()),
    ),
    "ResumeAgent": Leaf(
        "agent.resumed",
        "directory",
        lambda walk: directory_pb2.ResumeAgentRequest(agent_id=walk.made["CreateAgent"], request_id=fresh()),
    ),
    "IssueApiKey": Leaf(
        "api_key.issued",
        "keys",
        lambda walk: keys_pb2.IssueApiKeyRequest(agent_id=walk.made["CreateAgent"], name=NAME, request_id=fresh()),
    ),
    "RevokeApiKey": Leaf(
        "api_key.revoked",
        "keys",
        lambda walk: keys_pb2.RevokeApiKeyRequest(api_key_id=walk.made["IssueApiKey"], request_id=fresh()),
    ),
    "AddCredential": Leaf(
        "credential.added",
        "credentials",
        lambda walk: credentials_pb2.AddCredentialRequest(
            organization_id=walk.organization, provider="openai", secret=SECRET, label=NAME, request_id=fresh()
        ),
    ),
    "RemoveCredential": Leaf(
        "credential.removed",
        "credentials",
        lambda walk: credentials_pb2.RemoveCredentialRequest(
            credential_id=walk.made["AddCredential"], request_id=fresh()
        ),
    ),
    "CreatePolicy": Leaf(
        "policy.created",
        "policies",
        lambda walk: policies_pb2.CreatePolicyRequest(
            target_id=walk.organization, name=NAME, max_tokens_per_request=7, request_id=fresh()
        ),
    ),
    "UpdatePolicy": Leaf("policy.updated", "policies", _loosening),
    "RemovePolicy": Leaf(
        "policy.removed",
        "policies",
        lambda walk: policies_pb2.RemovePolicyRequest(policy_id=walk.made["CreatePolicy"], request_id=fresh()),
    ),
    "CreateRoute": Leaf(
        "route.created",
        "routes",
        lambda walk: routes_pb2.CreateRouteRequest(
            organization_id=walk.organization, alias=ALIAS, targets=TARGETS, request_id=fresh()
        ),
    ),
    "UpdateRoute": Leaf("route.updated", "routes", _rerouting),
    "RemoveRoute": Leaf(
        "route.removed",
        "routes",
        lambda walk: routes_pb2.RemoveRouteRequest(route_id=walk.made["CreateRoute"], request_id=fresh()),
    ),
}
# These leave a line too, made by the fixture, or work on nothing of an organization's.
OTHERS = {
    "CreateOrganization": "the fixture makes the organization; its line is the first of identity's",
    "SignUp": "a person who belongs to no organization yet",
    "LogIn": "a session is a person's",
    "LogOut": "a session is a person's",
}


@pytest.fixture
async def walk(house: House, ledger: RunningLedger, mesh: Mesh) -> AsyncIterator[Walk]:
    """Lend a tenant, with the vault's and the gateway's deliveries running; identity's own run already."""
    async with AsyncExitStack() as stack:
        loops: list[Callable[[], Awaitable[None]]] = []
        for service in ("vault", "gateway"):
            database = await stack.enter_async_context(db.connect(house.dsn(service), service=service))
            told = await stack.enter_async_context(house.channel("ledger", ledger.address, as_service=service))
            loops.append(audit.delivery(database, service, told))
        await stack.enter_async_context(looping(*loops))
        contracts = directory_pb2.DESCRIPTOR.services_by_name.values()
        certificates = house.certificates("gateway")
        identity = client.connect("identity", mesh.runtime.identity_address, certificates, contracts)
        await stack.enter_async_context(client.connected(identity))
        resolve, keys = policy_service.Resolver(database, identity), IdentityKeys(identity)
        stack.push_async_callback(keys.close)
        serving = house.serving("gateway", policy_service.registrations(database, resolve, told), keys, resolve)
        channel = await stack.enter_async_context(
            house.channel("gateway", await stack.enter_async_context(serving), as_service="edge")
        )
        yield Walk(
            await mesh.tenant(0),
            policies_pb2_grpc.PolicyServiceStub(channel),
            routes_pb2_grpc.RouteServiceStub(channel),
        )


def test_every_mutation_is_among_those_that_are_walked() -> None:
    assert {method.name for method in METHODS} == LEAVES.keys() | OTHERS.keys()


async def test_every_mutation_leaves_one_line_that_says_who_did_what_and_no_secret(
    ledger: RunningLedger, walk: Walk
) -> None:
    before = len(await chain(ledger, walk.organization, 5))
    person = walk.tenant.owner.person
    assert person
    with caller.acting(walk.tenant.owner):
        done = [(leaf.action, await leaf.done(walk, method), person.id) for method, leaf in LEAVES.items()]
    entries = await chain(ledger, walk.organization, before + len(done))
    assert len(entries) == before + len(done)
    assert sorted((entry["action"], entry["subject"], entry["actor"]) for entry in entries[before:]) == sorted(done)
    assert (entries[0]["action"], entries[0]["subject"]) == ("organization.created", walk.organization)
    assert {entry["detail"]["source"] for entry in entries} == {"identity", "vault", "gateway"}
    text = json.dumps(entries)
    assert SECRET not in text
    assert SECRET[-4:] not in [entry["detail"]["fact"].get("hint") for entry in entries]
    assert NAME not in text
    assert ALIAS not in text
    created = next(entry for entry in entries if entry["action"] == "policy.created")
    assert created["detail"]["fact"] == {"max_tokens_per_request": 7, "target_id": walk.organization}
    for action in ("policy.updated", "policy.removed"):
        told = next(entry for entry in entries if entry["action"] == action)
        assert told["detail"]["fact"] == {**EVERY_LIMIT, "target_id": walk.organization}


async def test_a_replayed_or_refused_mutation_leaves_no_line(ledger: RunningLedger, walk: Walk) -> None:
    before = len(await chain(ledger, walk.organization, 5))
    request = directory_pb2.CreateWorkspaceRequest(organization_id=walk.organization, name="W", request_id=fresh())
    suspended = directory_pb2.SuspendAgentRequest(agent_id=ids.new(ids.Kind.AGENT), request_id=fresh())
    with caller.acting(walk.tenant.owner):
        for _ in range(3):
            await call(walk.tenant.mesh.directory.CreateWorkspace, request)
        with pytest.raises(NotFound):
            await call(walk.tenant.mesh.directory.SuspendAgent, suspended)
        request.request_id = fresh()
        await call(walk.tenant.mesh.directory.CreateWorkspace, request)
    assert len(await chain(ledger, walk.organization, before + 2)) == before + 2
