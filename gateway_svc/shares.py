"""What many owners share, so that none of them can leave nothing to the others. Pure.

Dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking, 1998): what an owner may have is a
multiple of what is free, so that it becomes less the more is taken. Of 1, with a multiple of m, n greedy owners get
m / (1 + n·m) each, and 1 / (1 + n·m) stays free for whoever comes next.
"""

from __future__ import annotations

from fractions import Fraction


class Shares:
    """So many units, of which one owner alone gets `alone` at most; owners that have nothing are forgotten."""

    def __init__(self, total: int, alone: Fraction) -> None:
        self._free = total
        self._of_taken, self._of_free = alone.denominator - alone.numerator, alone.numerator
        self._taken: dict[str, int] = {}

    @property
    def free(self) -> int:
        """Return how many units nobody has."""
        return self._free

    @property
    def owners(self) -> int:
        """Return how many have anything."""
        return len(self._taken)

    def take(self, owner: str, units: int) -> bool:
        """Give an owner more; False when there are not so many, or when they have to be left to others."""
        free = self._free - units
        taken = self._taken.get(owner, 0) + units
        # The first unit is anybody's, so that the last ones go to those who have none.
        if free < 0 or (taken > 1 and taken * self._of_taken > free * self._of_free):
            return False
        self._free = free
        if taken:
            self._taken[owner] = taken
        return True

    def give_back(self, owner: str, units: int) -> None:
        """Return units that were taken."""
        self._free += units
        left = self._taken.pop(owner, 0) - units
        if left:
            self._taken[owner] = left
