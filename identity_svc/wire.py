"""Identity's records to and from protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from identity_svc import directory
from identity_svc.worker import Beat
from mandate.identity.v1 import directory_pb2, keys_pb2, people_pb2
from mandate.ledger.v1 import registry_pb2
from mesh.errors import invalid
from mesh.secret import Secret

STATES = {
    directory.AgentState.ACTIVE: directory_pb2.AGENT_STATE_ACTIVE,
    directory.AgentState.SUSPENDED: directory_pb2.AGENT_STATE_SUSPENDED,
}


def stamp(at: datetime) -> Timestamp:
    """Pack a moment."""
    packed = Timestamp()
    packed.FromDatetime(at)
    return packed


def moment(packed: Timestamp, field: str) -> datetime:
    """Unpack a moment; InvalidArgument names the field when no calendar holds it."""
    try:
        return packed.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "is no moment between the years 1 and 9999") from None


def person(item: directory.Person, grants: Mapping[str, str]) -> people_pb2.Person:
    """Pack a person with their memberships."""
    return people_pb2.Person(
        id=item.id,
        email=item.email,
        name=item.name,
        create_time=stamp(item.created_at),
        memberships=[people_pb2.Membership(organization_id=each, role=role) for each, role in grants.items()],
    )


def session(item: directory.Session, whose: people_pb2.Person, bearer: Secret) -> people_pb2.Session:
    """Pack a session that was just opened; the only message that holds its bearer."""
    return people_pb2.Session(
        id=item.id, person=whose, access_token=bearer.reveal(), expire_time=stamp(item.expires_at)
    )


def organization(item: directory.Organization) -> directory_pb2.Organization:
    """Pack an organization."""
    return directory_pb2.Organization(id=item.id, name=item.name, create_time=stamp(item.created_at))


def workspace(item: directory.Workspace) -> directory_pb2.Workspace:
    """Pack a workspace."""
    return directory_pb2.Workspace(
        id=item.id, organization_id=item.organization_id, name=item.name, create_time=stamp(item.created_at)
    )


def agent_group(item: directory.AgentGroup) -> directory_pb2.AgentGroup:
    """Pack an agent group."""
    return directory_pb2.AgentGroup(
        id=item.id,
        organization_id=item.organization_id,
        workspace_id=item.workspace_id,
        name=item.name,
        create_time=stamp(item.created_at),
    )


def agent(item: directory.Agent) -> directory_pb2.Agent:
    """Pack an agent."""
    return directory_pb2.Agent(
        id=item.id,
        organization_id=item.organization_id,
        workspace_id=item.workspace_id,
        agent_group_id=item.agent_group_id,
        name=item.name,
        state=STATES[item.state],
        create_time=stamp(item.created_at),
    )


def node(item: directory.Node) -> directory_pb2.Node:
    """Pack where an object stands."""
    return directory_pb2.Node(
        id=item.id, organization_id=item.organization_id, path=item.path, path_version=item.path_version
    )


def node_fact(item: directory.Node) -> bytes:
    """Pack where an object stands as an event for the ledger."""
    return registry_pb2.NodeFact(
        id=item.id, organization_id=item.organization_id, path=item.path, path_version=item.path_version
    ).SerializeToString()


def api_key(item: directory.ApiKey) -> keys_pb2.ApiKey:
    """Pack a key without its secret."""
    return keys_pb2.ApiKey(
        id=item.id,
        agent_id=item.agent_id,
        name=item.name,
        prefix=item.prefix,
        create_time=stamp(item.created_at),
        expire_time=stamp(item.expires_at) if item.expires_at else None,
        revoke_time=stamp(item.revoked_at) if item.revoked_at else None,
    )


def resolved(outcome: directory.Usable | directory.Unusable) -> keys_pb2.ResolveApiKeyResponse:
    """Pack whose key a digest named."""
    match outcome:
        case directory.Unusable(revision=revision):
            return keys_pb2.ResolveApiKeyResponse(usable=False, revision=revision)
        case directory.Usable():
            return keys_pb2.ResolveApiKeyResponse(
                usable=True,
                api_key_id=outcome.api_key_id,
                agent_state=STATES[outcome.agent_state],
                agent=node(outcome.agent),
                expire_time=stamp(outcome.expires_at) if outcome.expires_at else None,
                revision=outcome.revision,
            )


def agent_standing(outcome: directory.AgentStanding | directory.Unusable) -> keys_pb2.ResolveAgentResponse:
    """Pack where an agent stands."""
    match outcome:
        case directory.Unusable(revision=revision):
            return keys_pb2.ResolveAgentResponse(usable=False, revision=revision)
        case directory.AgentStanding():
            return keys_pb2.ResolveAgentResponse(
                usable=True,
                agent=node(outcome.agent),
                agent_state=STATES[outcome.agent_state],
                revision=outcome.revision,
            )


def beat(item: Beat) -> keys_pb2.WatchResponse:
    """Pack what a watcher is told."""
    return keys_pb2.WatchResponse(revision=item.revision, changes=_changes(item.changes), reset=item.reset)


def _changes(items: Sequence[directory.Change]) -> list[keys_pb2.Change]:
    return [keys_pb2.Change(revision=item.revision, subject_id=item.subject_id) for item in items]
