"""What a gateway knows and follows, put together; what is served over it is in `assembly`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway_svc.aliases import Aliases
from gateway_svc.breaker import Circuits
from gateway_svc.catalog import Catalog
from gateway_svc.channels import Channels
from gateway_svc.charging import Ledger
from gateway_svc.pushed import Changes
from gateway_svc.rates import Rates
from gateway_svc.replays import Limits, Replays
from gateway_svc.rules import Rules
from gateway_svc.violations import Violations
from gateway_svc.who import Directory
from mesh.cache import Redis
from mesh.clock import SystemClock
from mesh.db import Database
from mesh.verification import IdentityKeys


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that has a loop of its own, and what they share."""

    db: Database
    keys: IdentityKeys
    directory: Directory
    ledger: Ledger
    catalog: Catalog
    changes: Changes
    rules: Rules
    aliases: Aliases
    rates: Rates
    replays: Replays
    violations: Violations
    circuits: Circuits

    @property
    def loops(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return what keeps them going."""
        return (
            self.directory.run,
            self.ledger.run,
            self.catalog.run,
            self.changes.run,
            self.rates.run,
            self.replays.run,
            self.violations.run,
        )


def parts_of(
    db: Database, redis: Redis, channels: Channels, keys: IdentityKeys, replays: tuple[bytes, Limits]
) -> Parts:
    """Build them; `replays` is the key that seals answers, and how many are kept for how long."""
    changes = Changes(db)
    return Parts(
        db=db,
        keys=keys,
        directory=Directory(channels.identity, keys, SystemClock()),
        ledger=Ledger(channels.ledger),
        catalog=Catalog(channels.ledger),
        changes=changes,
        rules=Rules(db, changes),
        aliases=Aliases(db, changes),
        rates=Rates(redis),
        replays=Replays(db, *replays),
        violations=Violations(db),
        circuits=Circuits(),
    )
