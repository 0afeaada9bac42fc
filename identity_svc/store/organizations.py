"""SQL of organizations and of who belongs to them."""

from __future__ import annotations

from datetime import datetime

from identity_svc.directory import Organization, check_room
from identity_svc.store import changes
from mesh import ids
from mesh.db import Connection, Database, Row
from mesh.paging import Page


async def add(tx: Connection, owner_id: str, name: str, at: datetime) -> Organization:
    """Add an organization with its owner; Exhausted when the person has as many as one may have."""
    # The person's row is held, so that two at once cannot both take the last place.
    await tx.execute("SELECT id FROM people WHERE id = $1 FOR NO KEY UPDATE", owner_id)
    check_room(await tx.fetchval("SELECT count(*) FROM memberships WHERE person_id = $1", owner_id) or 0)
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    revision = await changes.record(tx, organization_id, organization_id, at)
    await changes.record(tx, organization_id, owner_id, at)  # what the owner may do has changed
    await tx.execute(
        "INSERT INTO organizations (id, name, path_version, created_at) VALUES ($1, $2, $3, $4)",
        organization_id,
        name,
        revision,
        at,
    )
    await tx.execute(
        "INSERT INTO memberships (person_id, organization_id, role, created_at) VALUES ($1, $2, 'owner', $3)",
        owner_id,
        organization_id,
        at,
    )
    return Organization(organization_id, name, revision, at)


async def rename(tx: Connection, organization_id: str, name: str, at: datetime) -> Organization | None:
    """Give an organization another name; None when there is no such organization."""
    row = await tx.fetchrow(
        "UPDATE organizations SET name = $2 WHERE id = $1 RETURNING id, name, path_version, created_at",
        organization_id,
        name,
    )
    if row is None:
        return None
    await changes.record(tx, organization_id, organization_id, at)
    return _organization(row)


async def find(db: Database, organization_id: str) -> Organization | None:
    """Return one organization."""
    row = await db.row("SELECT id, name, path_version, created_at FROM organizations WHERE id = $1", organization_id)
    return _organization(row) if row is not None else None


async def of_person(db: Database, person_id: str, page: Page) -> list[Organization]:
    """Return a page of a person's organizations, and one more row where there is one."""
    rows = await db.rows(
        """
        SELECT o.id, o.name, o.path_version, o.created_at
          FROM memberships m
          JOIN organizations o ON o.id = m.organization_id
         WHERE m.person_id = $1 AND m.organization_id > $2
         ORDER BY m.organization_id
         LIMIT $3
        """,
        person_id,
        page.after or "",
        page.size + 1,
    )
    return [_organization(row) for row in rows]


def _organization(row: Row) -> Organization:
    return Organization(row["id"], row["name"], row["path_version"], row["created_at"])
