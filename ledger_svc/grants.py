"""Lots of credits that may expire: which of them spending burns, and what became of one; in SQL: `cut_grants`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

NEVER = datetime.max.replace(tzinfo=UTC)


class Status(StrEnum):
    """What became of a lot."""

    ACTIVE = "active"
    BURNED = "burned"
    EXPIRED = "expired"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True)
class Lot:
    """What was left of a grant at the last cut; `seq` is the order of making."""

    grant_id: str
    seq: int
    priority: int
    expires_at: datetime | None
    remaining_micros: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A lot with all that left it until now."""

    id: str
    organization_id: str
    category: str
    priority: int
    amount_micros: int
    burned_micros: int
    broken_micros: int
    reason: str
    made_at: datetime
    expires_at: datetime | None
    voided_at: datetime | None

    @property
    def remaining_micros(self) -> int:
        """Return what can still be spent, or is covered by holds in flight."""
        return self.amount_micros - self.burned_micros - self.broken_micros

    def status(self, now: datetime) -> Status:
        """Return what became of it; a lot that was spent before its end is burned, not expired."""
        if self.voided_at is not None:
            return Status.VOIDED
        if not self.remaining_micros and not self.broken_micros:
            return Status.BURNED
        if self.expires_at is not None and self.expires_at <= now:
            return Status.EXPIRED
        return Status.ACTIVE


def burned(lots: Iterable[Lot], spent_micros: int, settled_micros: int) -> Mapping[str, int]:
    """Return what each lot lost since the last cut, by grant id; lots that lost nothing are not in it.

    What was spent burns lots in the order of priority, expiry (never is last) and making; credits that were bought come
    after all of them. More coming back than was spent (below 0) restores no lot: it is as good as bought. Lots never
    hold more than the wallet has settled, so what was taken out beyond the bought credits burns them too.
    """
    ordered = sorted(lots, key=lambda lot: (lot.priority, lot.expires_at or NEVER, lot.seq))
    left = max(spent_micros, sum(lot.remaining_micros for lot in ordered) - settled_micros, 0)
    losses: dict[str, int] = {}
    for lot in ordered:
        loss = min(lot.remaining_micros, left)
        left -= loss
        if loss:
            losses[lot.grant_id] = loss
    return losses
