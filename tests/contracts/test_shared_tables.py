"""The tables that the mesh works on are, in every schema that has them, what the mesh says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh import audit, idempotency, outbox

ROOT = Path(__file__).resolve().parents[2]
MIGRATIONS = sorted(ROOT.glob("*_svc/migrations/*.sql"))


def columns_of(sql: str, table: str) -> list[str]:
    """Return a table's definitions, white space and comments aside."""
    body = re.search(rf"CREATE TABLE {table} \((.*?)\n\);", sql, re.DOTALL)
    lines = (re.sub(r"--.*", "", line) for line in body[1].splitlines()) if body else ()
    return [" ".join(line.split()).rstrip(",") for line in lines if line.strip()]


SHARED = (
    ("requests", idempotency.TABLE),
    ("outbox", outbox.TABLE),
    ("audit_counts", audit.TABLES),
    ("audit_outbox", audit.TABLES),
)


@pytest.mark.parametrize(("table", "text"), SHARED)
def test_a_schemas_own_copy_has_the_same_columns(table: str, text: str) -> None:
    copies = [found for path in MIGRATIONS if (found := columns_of(path.read_text(), table))]
    assert copies
    assert all(copy == columns_of(text, table) for copy in copies), copies
