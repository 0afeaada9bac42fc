"""Which aliases an organization has, on every replica within a second of their change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from gateway_svc.pushed import Changes, Pushed
from gateway_svc.routing import Alias
from gateway_svc.store import change_log
from gateway_svc.store import routes as store
from mesh.db import Database

ENTRIES_MAX = 20_000
READS_AT_ONCE_MAX = 3  # of the pool's 10 connections, so that no loop waits for one

NO_ALIAS: Mapping[str, Alias] = MappingProxyType({})


class Aliases(Pushed[str, Mapping[str, Alias]]):
    """The aliases of the organizations seen lately, by their names; `of(organization_id)` gives them."""

    def __init__(self, db: Database, changes: Changes) -> None:
        super().__init__(
            changes,
            partial(_read, db),
            lambda organization_id: (change_log.routes_of(organization_id),),
            entries_max=ENTRIES_MAX,
            reads_at_once_max=READS_AT_ONCE_MAX,
        )


async def _read(db: Database, organization_id: str) -> tuple[int, Mapping[str, Alias]]:
    found = await store.in_force(db, organization_id)
    return found.revision, {alias.name: alias for alias in found.aliases} or NO_ALIAS
