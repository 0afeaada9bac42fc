"""Budgets and their current windows."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.db import Database, Row

COLUMNS = """
  g.id, g.organization_id, g.target_id, g.period, g.created_at, v.limit_micros, v.auto_disable, v.disabled,
  t.window_start,
  coalesce(-b.settled, 0) AS settled_micros, coalesce(b.held, 0) AS held_micros
"""
TABLES = """
  budgets g
  CROSS JOIN LATERAL (SELECT limit_micros, auto_disable, disabled FROM budget_versions z
                       WHERE z.budget_id = g.id ORDER BY z.version DESC LIMIT 1) v
  CROSS JOIN LATERAL (SELECT w.starts AS window_start
                        FROM window_of(g.organization_id, g.period, ledger_time(g.organization_id)) w) t
  LEFT JOIN accounts a ON a.organization_id = g.organization_id AND a.kind = 'budget' AND a.budget_id = g.id
                      AND a.window_start = t.window_start
  LEFT JOIN LATERAL balance_of(a.id) b ON a.id IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class NewBudget:
    """A cap to open."""

    id: str
    request_id: str
    target_id: str
    period: str
    limit_micros: int
    auto_disable: bool


@dataclass(frozen=True, slots=True)
class Created:
    """A budget's id; the field that differs when the key was used for another; whether its target is full."""

    id: str
    field: str
    full: bool


FULL = 3


async def create(db: Database, organization_id: str, budget: NewBudget, actor: str) -> Created:
    """Open a budget with what its window has spent and holds already."""
    counted = await db.one(
        "SELECT start, counted, known FROM count_budget($1, $2, $3)", organization_id, budget.target_id, budget.period
    )
    row = await db.one(
        "SELECT status, budget, field FROM create_budget($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        organization_id,
        budget.id,
        budget.request_id,
        budget.target_id,
        budget.period,
        budget.limit_micros,
        budget.auto_disable,
        actor,
        *counted.values(),
    )
    return Created(row["budget"], row["field"], row["status"] == FULL)


async def change(  # noqa: PLR0913
    db: Database,
    organization_id: str,
    budget_id: str,
    request_id: str,
    actor: str,
    *,
    limit_micros: int | None = None,
    auto_disable: bool | None = None,
    disabled: bool | None = None,
) -> str:
    """Add a version; return the field that differs when the key was used for another change ("" otherwise)."""
    field: str = await db.value(
        "SELECT field FROM change_budget($1, $2, $3, $4, $5, $6, $7)",
        organization_id,
        budget_id,
        request_id,
        limit_micros,
        auto_disable,
        disabled,
        actor,
    )
    return field


async def get(db: Database, budget_id: str) -> Row | None:
    """Return a budget with its current window."""
    return await db.row(f"SELECT {COLUMNS} FROM {TABLES} WHERE g.id = $1", budget_id)  # noqa: S608


async def of_organization(db: Database, organization_id: str, after: str | None, limit: int) -> list[Row]:
    """Return budgets, oldest first."""
    return await db.rows(
        f"SELECT {COLUMNS} FROM {TABLES} "  # noqa: S608
        "WHERE g.organization_id = $1 AND ($2::text IS NULL OR g.id > $2) ORDER BY g.id LIMIT $3",
        organization_id,
        after,
        limit,
    )
