"""Latencies counted in classes, and the quantiles that such counts tell. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# Ends of classes in ms, each 1.33 or 1.5 times the one before; a class holds its lower end. Sums that are stored were
# counted with these: a change of them needs every organization's reports rebuilt.
ENDS_MS = (*(part << octave for octave in range(15) for part in (4, 6)), 131_072)
CLASSES = len(ENDS_MS) + 1


def quantile_ms(counts: Sequence[int], percent: int) -> int:
    """Estimate a quantile: a straight line through the class that holds it; 0 when nothing was counted.

    The estimate lies in the class of the exact value. What lies above all classes is told as their end.
    """
    total = sum(counts)
    if total == 0:
        return 0
    rank = -(-total * percent // 100)
    passed = 0
    for number, count in enumerate(counts[:-1]):
        if passed + count >= rank:
            low = ENDS_MS[number - 1] if number else 0
            width = ENDS_MS[number] - low
            return low + width * (rank - passed) // (count + 1)
        passed += count
    return ENDS_MS[-1]


def mean(total: int, count: int) -> int:
    """Return a mean, rounded half up; 0 over nothing."""
    return (2 * total + count) // (2 * count) if count else 0
