"""Model aliases: what a name of an organization's own stands for, and in which order its targets are tried. Pure.

Whether a target's upstream is well is the business of `breaker.py`; what an alias may hold, of `route_terms.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 2**64


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a model takes and gives, where no price list says so."""

    context_tokens: int
    output_tokens_max: int


@dataclass(frozen=True, slots=True)
class Target:
    """One model that an alias may stand for; `limits` only where the model has no price."""

    provider: str
    model: str
    weight: int = 1
    tier: int = 0
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for which any of its targets may be asked."""

    route_id: str
    name: str
    targets: tuple[Target, ...]


def order(targets: Sequence[Target], seed: str) -> tuple[Target, ...]:
    """Return all targets in the order in which to try them, the same for the same seed.

    Tiers follow one another, lowest first. Inside a tier each place is drawn by weight among those that are left, by
    the exponential races of Efraimidis and Spirakis (2006): least -ln(u) / weight first, which a plain sort settles.
    Weight 0 comes after all others of its tier.
    """
    if len(targets) == 1:
        return (targets[0],)
    key = hashlib.blake2b(seed.encode(errors="surrogatepass")).digest()
    places = sorted(range(len(targets)), key=lambda place: _rank(targets[place], key, place))
    return tuple(targets[place] for place in places)


def _rank(target: Target, key: bytes, place: int) -> tuple[int, bool, float]:
    digest = hashlib.blake2b(place.to_bytes(4, "big"), key=key, digest_size=8).digest()
    waited = -math.log((int.from_bytes(digest, "big") + 0.5) / DRAWS)
    return target.tier, target.weight == 0, waited / (target.weight or 1)
