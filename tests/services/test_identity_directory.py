from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from mandate.identity.v1 import directory_pb2 as pb
from mandate.identity.v1 import keys_pb2
from mesh import db, ids
from mesh.caller import acting
from mesh.client import call
from mesh.errors import AlreadyExists, Exhausted, InvalidArgument, NotFound, PermissionDenied
from mesh.testing import House
from tests.services.identity_running import Family, Running, as_owner, fresh, identity_running


@pytest.fixture(scope="module")
async def identity(house: House) -> AsyncIterator[Running]:
    async with identity_running(house) as running:
        yield running


async def test_the_ledger_knows_each_node_once_it_is_created(identity: Running) -> None:
    family = await identity.family(await identity.sign_up())
    path = (family.organization_id, family.workspace_id, family.agent_group_id, family.agent_id)
    paths = identity.ledger.paths()
    assert [paths[node] for node in path] == [path[:1], path[:2], path[:3], path]


async def test_a_node_says_where_it_stands(identity: Running) -> None:
    family = await identity.family(await identity.sign_up())
    path = [family.organization_id, family.workspace_id, family.agent_group_id, family.agent_id]
    versions: list[int] = []
    for depth, node_id in enumerate(path):
        node = await call(identity.gateway_directory.ResolveNode, pb.ResolveNodeRequest(node_id=node_id))
        assert (node.id, node.organization_id, list(node.path)) == (node_id, path[0], path[: depth + 1])
        versions.append(node.path_version)
    assert versions == sorted(set(versions))
    told = {fact.id: fact.path_version for fact in identity.ledger.nodes}
    assert [told[node_id] for node_id in path] == versions


async def test_a_node_nobody_made_is_not_found(identity: Running) -> None:
    for node_id in (ids.new(ids.Kind.AGENT), ids.new(ids.Kind.API_KEY), "nonsense", ""):
        with pytest.raises(NotFound):
            await call(identity.gateway_directory.ResolveNode, pb.ResolveNodeRequest(node_id=node_id))


async def test_only_services_resolve_nodes(identity: Running) -> None:
    with pytest.raises(PermissionDenied) as refused:
        await call(identity.directory.ResolveNode, pb.ResolveNodeRequest(node_id=ids.new(ids.Kind.AGENT)))
    assert refused.value.reason == "CALLER_NOT_ALLOWED"


async def test_the_same_request_makes_one_organization(identity: Running) -> None:
    session = await identity.sign_up()
    request = pb.CreateOrganizationRequest(name=" Acme  ", request_id=fresh())
    with acting(await identity.caller_of(session)):
        first = await call(identity.directory.CreateOrganization, request)
        assert await call(identity.directory.CreateOrganization, request) == first
        assert first.name == "Acme"
        request.name = "Another"
        with pytest.raises(AlreadyExists) as refused:
            await call(identity.directory.CreateOrganization, request)
    assert refused.value.details["field"] == "name"


async def test_no_person_belongs_to_more_than_64_organizations(house: House, identity: Running) -> None:
    session = await identity.sign_up()
    organization = await identity.organization(session)
    async with as_owner(house) as owner:
        await owner.execute(
            """
            WITH made AS (
              INSERT INTO organizations (id, name, path_version, created_at)
              SELECT 'org_' || lpad(n::text, 26, '0'), 'filler', (SELECT path_version FROM organizations WHERE id = $2),
                     now()
                FROM generate_series(1, 62) n
              RETURNING id)
            INSERT INTO memberships (person_id, organization_id, role, created_at)
            SELECT $1, id, 'viewer', now() FROM made
            """,
            session.person.id,
            organization.id,
        )
    attempts = [identity.organization(session) for _ in range(3)]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(answer, pb.Organization) for answer in answers) == 1
    assert {answer.reason for answer in answers if isinstance(answer, Exhausted)} == {"ORGANIZATIONS_MAX_REACHED"}
    with acting(await identity.caller_of(session)):  # so many grants still fit into a token
        await call(identity.directory.GetOrganization, pb.GetOrganizationRequest(organization_id=organization.id))


async def test_an_organization_is_renamed_by_its_mask(identity: Running) -> None:
    session = await identity.sign_up()
    organization = await identity.organization(session)
    request = pb.UpdateOrganizationRequest(
        organization=pb.Organization(id=organization.id, name="Renamed"),
        update_mask=FieldMask(paths=["name"]),
        request_id=fresh(),
    )
    with acting(await identity.caller_of(session)):
        assert (await call(identity.directory.UpdateOrganization, request)).name == "Renamed"
        got = await call(identity.directory.GetOrganization, pb.GetOrganizationRequest(organization_id=organization.id))
        assert got.name == "Renamed"
        for paths in ([], ["name", "create_time"], ["id"]):
            bad = pb.UpdateOrganizationRequest()
            bad.CopyFrom(request)
            bad.update_mask.paths[:] = paths
            with pytest.raises(InvalidArgument) as refused:
                await call(identity.directory.UpdateOrganization, bad)
            assert refused.value.details["field"] == "update_mask"


async def test_lists_page_to_their_end(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    caller = await identity.caller_of(session)
    made = [family.agent_id]
    with acting(caller):
        for _ in range(4):
            request = pb.CreateAgentRequest(agent_group_id=family.agent_group_id, name="More", request_id=fresh())
            made.append((await call(identity.directory.CreateAgent, request)).id)
        for parent_id in (family.organization_id, family.workspace_id, family.agent_group_id):
            found: list[str] = []
            request = pb.ListAgentsRequest(parent_id=parent_id, page_size=2)
            while True:
                page = await call(identity.directory.ListAgents, request)
                assert len(page.agents) <= 2
                found += [agent.id for agent in page.agents]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert found == sorted(made)


async def test_every_list_shows_what_was_made(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    with acting(await identity.caller_of(session)):
        organizations = await call(identity.directory.ListOrganizations, pb.ListOrganizationsRequest())
        workspaces = await call(
            identity.directory.ListWorkspaces, pb.ListWorkspacesRequest(organization_id=family.organization_id)
        )
        groups = [
            await call(identity.directory.ListAgentGroups, pb.ListAgentGroupsRequest(parent_id=parent_id))
            for parent_id in (family.organization_id, family.workspace_id)
        ]
    assert [each.id for each in organizations.organizations] == [family.organization_id]
    assert [each.id for each in workspaces.workspaces] == [family.workspace_id]
    assert [[each.id for each in page.agent_groups] for page in groups] == [[family.agent_group_id]] * 2


async def test_a_list_refuses_a_parent_of_the_wrong_kind(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    lists: dict[str, Message] = {
        "ListAgents": pb.ListAgentsRequest(parent_id=family.agent_id),
        "ListAgentGroups": pb.ListAgentGroupsRequest(parent_id=family.agent_group_id),
    }
    with acting(await identity.caller_of(session)):
        for name, request in lists.items():
            with pytest.raises(InvalidArgument) as refused:
                await call(_rpc(identity, name), request)
            assert refused.value.details["field"] == "parent_id"


async def test_a_parent_of_the_wrong_kind_bears_nothing(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    creations: dict[str, Message] = {
        "CreateWorkspace": pb.CreateWorkspaceRequest(organization_id=family.workspace_id, name="x", request_id=fresh()),
        "CreateAgentGroup": pb.CreateAgentGroupRequest(
            workspace_id=family.organization_id, name="x", request_id=fresh()
        ),
        "CreateAgent": pb.CreateAgentRequest(agent_group_id=family.workspace_id, name="x", request_id=fresh()),
    }
    with acting(await identity.caller_of(session)):
        for name, request in creations.items():
            with pytest.raises(NotFound):
                await call(_rpc(identity, name), request)


async def test_an_agent_is_suspended_and_resumed(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    with acting(await identity.caller_of(session)):
        for _ in range(2):
            suspend = pb.SuspendAgentRequest(agent_id=family.agent_id, request_id=fresh())
            assert (await call(identity.directory.SuspendAgent, suspend)).state == pb.AGENT_STATE_SUSPENDED
        got = await call(identity.directory.GetAgent, pb.GetAgentRequest(agent_id=family.agent_id))
        assert got.state == pb.AGENT_STATE_SUSPENDED
        resume = pb.ResumeAgentRequest(agent_id=family.agent_id, request_id=fresh())
        assert (await call(identity.directory.ResumeAgent, resume)).state == pb.AGENT_STATE_ACTIVE


def _mutations(family: Family, api_key_id: str) -> dict[str, Message]:
    return {
        "UpdateOrganization": pb.UpdateOrganizationRequest(
            organization=pb.Organization(id=family.organization_id, name="x"),
            update_mask=FieldMask(paths=["name"]),
            request_id=fresh(),
        ),
        "CreateWorkspace": pb.CreateWorkspaceRequest(
            organization_id=family.organization_id, name="x", request_id=fresh()
        ),
        "CreateAgentGroup": pb.CreateAgentGroupRequest(workspace_id=family.workspace_id, name="x", request_id=fresh()),
        "CreateAgent": pb.CreateAgentRequest(agent_group_id=family.agent_group_id, name="x", request_id=fresh()),
        "SuspendAgent": pb.SuspendAgentRequest(agent_id=family.agent_id, request_id=fresh()),
        "ResumeAgent": pb.ResumeAgentRequest(agent_id=family.agent_id, request_id=fresh()),
        "IssueApiKey": keys_pb2.IssueApiKeyRequest(agent_id=family.agent_id, name="x", request_id=fresh()),
        "RevokeApiKey": keys_pb2.RevokeApiKeyRequest(api_key_id=api_key_id, request_id=fresh()),
    }


def _reads(family: Family) -> dict[str, Message]:
    return {
        "GetOrganization": pb.GetOrganizationRequest(organization_id=family.organization_id),
        "ListWorkspaces": pb.ListWorkspacesRequest(organization_id=family.organization_id),
        "ListAgentGroups": pb.ListAgentGroupsRequest(parent_id=family.workspace_id),
        "GetAgent": pb.GetAgentRequest(agent_id=family.agent_id),
        "ListAgents": pb.ListAgentsRequest(parent_id=family.agent_group_id),
        "ListApiKeys": keys_pb2.ListApiKeysRequest(agent_id=family.agent_id),
    }


def _rpc(identity: Running, name: str) -> Any:
    return getattr(identity.directory, name, None) or getattr(identity.keys, name)


async def test_an_outsider_finds_nothing(identity: Running) -> None:
    session, outsider = await identity.sign_up(), await identity.sign_up()
    family = await identity.family(session)
    issued = await identity.issue(session, family.agent_id)
    await identity.organization(outsider)
    with acting(await identity.caller_of(outsider)):
        for name, request in (_mutations(family, issued.api_key.id) | _reads(family)).items():
            with pytest.raises(NotFound):
                await call(_rpc(identity, name), request)


async def test_a_viewer_reads_and_changes_nothing(house: House, identity: Running) -> None:
    session, viewer = await identity.sign_up(), await identity.sign_up()
    family = await identity.family(session)
    issued = await identity.issue(session, family.agent_id)
    async with as_owner(house) as owner:
        await owner.execute(
            "INSERT INTO memberships (person_id, organization_id, role, created_at) VALUES ($1, $2, 'viewer', now())",
            viewer.person.id,
            family.organization_id,
        )
    with acting(await identity.caller_of(viewer)):
        for name, request in _reads(family).items():
            await call(_rpc(identity, name), request)
        for name, request in _mutations(family, issued.api_key.id).items():
            with pytest.raises(PermissionDenied):
                await call(_rpc(identity, name), request)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE changes SET subject_id = 'x'",
        "DELETE FROM changes",
        "DELETE FROM organizations",
        "UPDATE agents SET organization_id = 'x'",
        "UPDATE api_keys SET revoked_at = NULL, key_sha256 = '\\x00'",
        "UPDATE memberships SET role = 'owner'",
        "UPDATE requests SET response = ''",
        "TRUNCATE sessions",
        "CREATE TABLE identity.mine ()",
    ],
)
async def test_the_runtime_role_cannot_rewrite_the_past(house: House, statement: str) -> None:
    async with db.connect(house.dsn("identity"), service="identity") as runtime:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await runtime.execute(statement)
