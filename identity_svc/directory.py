"""The records of identity: people, sessions, the hierarchy of agents, and keys. Pure; no rules of storage in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mesh import ids
from mesh.errors import Exhausted, invalid

ORGANIZATIONS_MAX = 64  # of one person: their roles travel in every mesh token


class AgentState(StrEnum):
    """Whether an agent may act."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Person:
    """A human user."""

    id: str
    email: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """A live session's person, and their role in each organization."""

    session_id: str
    person_id: str
    expires_at: datetime
    grants: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Session:
    """One login of a person; its bearer is not in here."""

    id: str
    person_id: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant."""

    id: str
    name: str
    path_version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Workspace:
    """The first level below an organization."""

    id: str
    organization_id: str
    name: str
    path_version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AgentGroup:
    """The second level below an organization."""

    id: str
    organization_id: str
    workspace_id: str
    name: str
    path_version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Agent:
    """A program that acts with keys of its own."""

    id: str
    organization_id: str
    workspace_id: str
    agent_group_id: str
    name: str
    state: AgentState
    path_version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Node:
    """Where an object of the hierarchy stands: `path` goes from the organization down to the object itself."""

    id: str
    organization_id: str
    path: tuple[str, ...]
    path_version: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An agent's key without its secret."""

    id: str
    organization_id: str
    agent_id: str
    name: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Usable:
    """A key that may be used: whose it is and where its agent stands, as of a revision."""

    api_key_id: str
    expires_at: datetime | None
    agent_state: AgentState
    agent: Node
    revision: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """A key that nobody holds, that expired or was revoked, or an agent that is not known, as of a revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class AgentStanding:
    """Where an agent stands and whether it may act, as of a revision."""

    agent_state: AgentState
    agent: Node
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """An object whose cached copies are no longer true."""

    revision: int
    subject_id: str


def node_of(item: Organization | Workspace | AgentGroup | Agent) -> Node:
    """Return where an object stands."""
    match item:
        case Organization():
            path: tuple[str, ...] = (item.id,)
        case Workspace():
            path = (item.organization_id, item.id)
        case AgentGroup():
            path = (item.organization_id, item.workspace_id, item.id)
        case Agent():
            path = (item.organization_id, item.workspace_id, item.agent_group_id, item.id)
    return Node(item.id, path[0], path, item.path_version)


def parent_kind(parent_id: str, allowed: tuple[ids.Kind, ...]) -> ids.Kind:
    """Return which of the allowed kinds a list's parent is; InvalidArgument for any other."""
    kind = ids.kind_of(parent_id)
    if kind is None or kind not in allowed:
        names = " or ".join(f"{each}_…" for each in allowed)
        raise invalid("parent_id", f"must be {names}")
    return kind


def check_room(organizations: int) -> None:
    """Refuse an organization more than one person may have."""
    if organizations >= ORGANIZATIONS_MAX:
        raise Exhausted(
            "ORGANIZATIONS_MAX_REACHED",
            f"a person belongs to at most {ORGANIZATIONS_MAX} organizations",
            limit=str(ORGANIZATIONS_MAX),
        )


def renamed(paths: tuple[str, ...], name: str) -> str:
    """Return the name that an update's mask asks for; InvalidArgument when the mask names anything else."""
    if not paths:
        raise invalid("update_mask", "must name what is to change")
    if unknown := [path for path in paths if path != "name"]:
        raise invalid("update_mask", f"{unknown[0][:100]!r} cannot be changed; only name can")
    return name


def check_expiry(expires_at: datetime | None, now: datetime) -> None:
    """Refuse a key that would be born expired."""
    if expires_at is not None and expires_at <= now:
        raise invalid("expire_time", "must be in the future")
