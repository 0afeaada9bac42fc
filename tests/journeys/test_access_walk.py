from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import mandate
from mandate.identity.v1 import people_pb2, people_pb2_grpc
from mesh import access, client, faults, ports
from mesh.errors import Code, MeshError
from mesh.settings import Runtime
from mesh.tls import Certificates
from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.timeout(180)]

SERVICES = ("edge", "gateway", "identity", "vault", "ledger", "operator")


def methods() -> Iterator[MethodDescriptor]:
    """Walk every RPC of every contract."""
    root = Path(next(iter(mandate.__path__)))
    for path in sorted(root.rglob("*_pb2.py")):
        module = ".".join(("mandate", *path.relative_to(root).with_suffix("").parts))
        for service in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = list(methods())
SCOPED = [method for method in METHODS if access.rule_of(method).scope]


def name_of(method: MethodDescriptor) -> str:
    return method.full_name


@dataclass
class Caller:
    """Calls any RPC with the certificate of any service."""

    mesh: Mesh

    def runtime(self) -> Runtime:
        return Runtime(home=self.mesh.home, base_port=self.mesh.base_port, env_file=None)

    async def call(
        self, method: MethodDescriptor, request: Message, *, service: str, token: str = ""
    ) -> MeshError | None:
        """Return the error that an RPC answers with, None when it answers."""
        area = method.full_name.split(".")[1]
        certificates = Certificates(self.mesh.home / "tls", service)
        address = ports.address_of(area, self.runtime())
        async with client.connected(client.connect(area, address, certificates, ())) as channel:
            path = f"/{method.containing_service.full_name}/{method.name}"
            coders: dict[str, Any] = {
                "request_serializer": type(request).SerializeToString,
                "response_deserializer": GetMessageClass(method.output_type).FromString,
            }
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            try:
                if method.client_streaming:
                    # Nothing is written: a write to a call that was refused meanwhile fails in gRPC's own core.
                    await channel.stream_stream(path, **coders)(metadata=metadata, timeout=5).read()
                elif method.server_streaming:
                    await channel.unary_stream(path, **coders)(request, metadata=metadata, timeout=5).read()
                else:
                    await channel.unary_unary(path, **coders)(request, metadata=metadata, timeout=5)
            except grpc.aio.AioRpcError as failure:
                return faults.from_rpc(failure)
        return None


@pytest.fixture(scope="module")
def owners(mesh: Mesh) -> tuple[Tenant, Tenant]:
    return mesh.tenant(5_000_000), mesh.tenant(5_000_000)


async def mesh_token(mesh: Mesh, tenant: Tenant) -> str:
    runtime = Runtime(home=mesh.home, base_port=mesh.base_port, env_file=None)
    certificates = Certificates(mesh.home / "tls", "edge")
    async with client.connected(
        client.connect("identity", ports.address_of("identity", runtime), certificates, ())
    ) as channel:
        request = people_pb2.AuthenticateRequest(access_token=tenant.token)
        return (await client.call(people_pb2_grpc.PeopleServiceStub(channel).Authenticate, request)).mesh_token


def objects_of(mesh: Mesh, tenant: Tenant) -> dict[str, str]:
    """Make one object of every kind that a scope can name."""
    budget = {
        "target": {"agentId": tenant.agent_id},
        "period": "DAILY",
        "limitMicros": "1000000",
        "idempotencyKey": "b",
    }
    policy = {"target": {"agentId": tenant.agent_id}, "name": "P", "allowedModels": ["mock-model"]}
    route = {
        "organizationId": tenant.organization_id,
        "alias": f"any-{uuid.uuid4().hex[:8]}",
        "targets": [{"provider": "mock", "model": "mock-model"}],
    }
    secret = {
        "organizationId": tenant.organization_id,
        "provider": "openai",
        "secret": "sk-0123456789abcdef",
        "label": "L",
    }
    made = {
        "budget_id": mesh.mutate("createBudget", "CreateBudgetInput", budget, "budget { id }", tenant.token)["budget"][
            "id"
        ],
        "policy_id": mesh.mutate("createPolicy", "CreatePolicyInput", policy, "policy { id }", tenant.token)["policy"][
            "id"
        ],
        "route_id": mesh.mutate("createRoute", "CreateRouteInput", route, "route { id }", tenant.token)["route"]["id"],
        "credential_id": mesh.mutate(
            "addProviderCredential", "AddProviderCredentialInput", secret, "providerCredential { id }", tenant.token
        )["providerCredential"]["id"],
    }
    return made | {
        "organization_id": tenant.organization_id,
        "organization.id": tenant.organization_id,
        "route.id": made["route_id"],
        "rules.organization_id": tenant.organization_id,
        "workspace_id": tenant.workspace_id,
        "agent_group_id": tenant.agent_group_id,
        "agent_id": tenant.agent_id,
        "api_key_id": tenant.api_key_id,
        "parent_id": tenant.workspace_id,
        "target_id": tenant.agent_id,
        "node_id": tenant.agent_id,
        "policy.id": made["policy_id"],
    }


def request_for(method: MethodDescriptor, object_id: str) -> Message:
    """Build a request that names one object and is otherwise empty."""
    request = GetMessageClass(method.input_type)()
    target: Any = request
    *parents, last = access.rule_of(method).scope
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, object_id)
    if "request_id" in method.input_type.fields_by_name:
        setattr(request, "request_id", "walk")  # noqa: B010  # the message type is not known here
    return request


async def test_another_organizations_objects_do_not_exist_on_any_rpc(mesh: Mesh, owners: tuple[Tenant, Tenant]) -> None:
    mine, others = owners
    objects, token, caller = objects_of(mesh, others), await mesh_token(mesh, mine), Caller(mesh)
    wrong: list[str] = []
    for method in SCOPED:
        scope = ".".join(access.rule_of(method).scope)
        error = await caller.call(method, request_for(method, objects[scope]), service="edge", token=token)
        if error is None or error.code is not Code.NOT_FOUND:
            wrong.append(f"{method.full_name}: {error.code.name if error else 'answered'}")
    assert wrong == []
    assert len(SCOPED) >= 25


async def test_an_object_that_never_was_answers_exactly_the_same(mesh: Mesh, owners: tuple[Tenant, Tenant]) -> None:
    mine, others = owners
    objects, token, caller = objects_of(mesh, others), await mesh_token(mesh, mine), Caller(mesh)
    for method in SCOPED:
        theirs = objects[".".join(access.rule_of(method).scope)]
        never = theirs[:-4] + ("0000" if theirs[-4:] != "0000" else "1111")
        first = await caller.call(method, request_for(method, theirs), service="edge", token=token)
        second = await caller.call(method, request_for(method, never), service="edge", token=token)
        assert first is not None
        assert second is not None
        assert (first.code, first.reason, first.message.replace(theirs, "")) == (
            second.code,
            second.reason,
            second.message.replace(never, ""),
        ), method.full_name


async def test_no_rpc_answers_a_service_that_its_contract_does_not_name(
    mesh: Mesh, owners: tuple[Tenant, Tenant]
) -> None:
    token, caller = await mesh_token(mesh, owners[0]), Caller(mesh)
    wrong: list[str] = []
    for method in METHODS:
        for service in SERVICES:
            if service in access.rule_of(method).callers:
                continue
            request = GetMessageClass(method.input_type)()
            error = await caller.call(method, request, service=service, token=token)
            if error is None or error.code is not Code.PERMISSION_DENIED:
                wrong.append(f"{method.full_name} for {service}: {error.code.name if error else 'answered'}")
    assert wrong == []


async def test_every_rpc_for_people_refuses_a_call_without_a_person(mesh: Mesh) -> None:
    caller = Caller(mesh)
    for method in METHODS:
        rule = access.rule_of(method)
        if rule.needs_person:
            request = GetMessageClass(method.input_type)()
            error = await caller.call(method, request, service="edge")
            assert error is not None
            assert error.code is Code.UNAUTHENTICATED, method.full_name


async def test_a_peer_without_a_certificate_of_this_mesh_is_refused(mesh: Mesh) -> None:
    authority = (mesh.home / "tls" / "ca.pem").read_bytes()
    for area in ("identity", "vault", "ledger", "gateway"):
        port = mesh.base_port + ports.GRPC[area]
        credentials = grpc.ssl_channel_credentials(authority)
        options = [("grpc.ssl_target_name_override", f"{area}.mandate.internal")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", timeout=3)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=3)
