"""How an organization wants its books kept."""

from __future__ import annotations

from mesh.db import Database, Row


async def get(db: Database, organization_id: str) -> Row | None:
    """Return the rules in force; None when nobody has changed anything yet."""
    return await db.row(
        "SELECT version, time_zone, uncertain, default_price, recorded_at FROM rules "
        "WHERE organization_id = $1 ORDER BY version DESC LIMIT 1",
        organization_id,
    )


async def change(
    db: Database, organization_id: str, request_id: str, actor: str, wanted: tuple[str | None, str | None, str | None]
) -> str:
    """Change time zone, uncertain rule and default price, where not None.

    Return the field that differs when the key was used for another change ("" otherwise).
    """
    field: str = await db.value(
        "SELECT field FROM change_rules($1, $2, $3, $4, $5, $6)", organization_id, request_id, *wanted, actor
    )
    return field


async def knows_zone(db: Database, name: str) -> bool:
    """Return whether PostgreSQL has a time zone of this name."""
    return bool(await db.value("SELECT EXISTS (SELECT 1 FROM pg_timezone_names WHERE name = $1)", name))
