"""The Merkle tree over an organization's entries, and what a signed head says. Pure; nothing is read or signed in here.

The tree is that of RFC 9162, section 2.1: a leaf is SHA-256 of 0x00 and an entry's line, a node SHA-256 of 0x01 and the
two below it. Complete subtrees are named (level, position): the one at (8, 2) covers leaves 512 to 767.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mesh import canonical

LEAF, NODE = b"\x00", b"\x01"
STORED_LEVEL = 8  # subtrees of 256 leaves and more are kept
CHUNK = 1 << STORED_LEVEL

Place = tuple[int, int]  # level, position


class ChainBroken(Exception):
    """An entry does not follow from the one before; `seq` names it."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"entry {seq} is not what was sealed")
        self.seq = seq


@dataclass(frozen=True, slots=True)
class Head:
    """What is signed: the chain's hash and the tree's root over all entries up to `seq`."""

    organization_id: str
    seq: int
    seal: bytes
    root: bytes
    time: str
    key_id: str

    @property
    def text(self) -> str:
        """Return the canonical JSON that the signature covers."""
        return canonical.dumps(
            {
                "hash": self.seal.hex(),
                "key_id": self.key_id,
                "organization": self.organization_id,
                "root": self.root.hex(),
                "seq": self.seq,
                "time": self.time,
            }
        )

    @classmethod
    def of(cls, text: str) -> Head:
        """Read what `text` wrote."""
        found = canonical.loads(text)
        seal, root = bytes.fromhex(found["hash"]), bytes.fromhex(found["root"])
        return cls(found["organization"], found["seq"], seal, root, found["time"], found["key_id"])


@dataclass(slots=True)
class Growing:
    """A chain and its tree as entries are added, from the start or from a multiple of 256 entries."""

    seq: int
    seal: bytes
    peaks: list[tuple[int, bytes]]  # the complete subtrees side by side, the largest first
    made: dict[Place, bytes] = field(default_factory=dict[Place, bytes])

    def add(self, line: str, seal: bytes) -> None:
        """Add the next entry; ChainBroken when its hash does not follow."""
        text = line.encode()
        self.seq += 1
        self.seal = hashlib.sha256(self.seal + text).digest()
        if not hmac.compare_digest(self.seal, seal):
            raise ChainBroken(self.seq)
        level, position, top = 0, self.seq - 1, leaf(text)
        while position & 1:
            top = node(self.peaks.pop()[1], top)
            level, position = level + 1, position >> 1
            if level >= STORED_LEVEL:
                self.made[level, position] = top
        self.peaks.append((level, top))

    @property
    def root(self) -> bytes:
        """Return the root over what was added so far; there is one entry at least."""
        return _fold([top for _, top in self.peaks])


@dataclass(frozen=True, slots=True)
class Tree:
    """As much of a tree as a proof needs: stored subtrees by place, and some leaves' hashes by their number from 0."""

    stored: Mapping[Place, bytes]
    leaves: Mapping[int, bytes]

    def root(self, size: int) -> bytes:
        """Return the root over the first `size` leaves."""
        return self._over(0, size)

    def path(self, number: int, size: int) -> list[bytes]:
        """Return the audit path of a leaf (RFC 9162, section 2.1.3), from the leaf up."""
        return [self._over(start, end) for start, end in siblings(number, size)]

    def _over(self, start: int, end: int) -> bytes:
        return _fold([self._subtree(level, position) for level, position in places(start, end)])

    def _subtree(self, level: int, position: int) -> bytes:
        if level >= STORED_LEVEL:
            return self.stored[level, position]
        if level == 0:
            return self.leaves[position]
        return node(self._subtree(level - 1, 2 * position), self._subtree(level - 1, 2 * position + 1))


def genesis(organization_id: str) -> bytes:
    """Return what stands for the hash before an organization's first entry."""
    return hashlib.sha256(organization_id.encode()).digest()


def leaf(text: bytes) -> bytes:
    """Hash an entry."""
    return hashlib.sha256(LEAF + text).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into the one above."""
    return hashlib.sha256(NODE + left + right).digest()


def places(start: int, end: int) -> Iterator[Place]:
    """Split leaves `start` up to `end` into complete subtrees, the largest first; `start` is where a subtree begins."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def siblings(number: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges of leaves beside a leaf's way up to the root, the nearest first."""
    start, end, found = 0, size, list[tuple[int, int]]()
    while end - start > 1:
        half = start + (1 << ((end - start - 1).bit_length() - 1))
        if number < half:
            found.append((half, end))
            end = half
        else:
            found.append((start, half))
            start = half
    return found[::-1]


def stored_places(number: int, size: int) -> list[Place]:
    """Return the stored subtrees that a leaf's path and the root need."""
    ranges = [(0, size), *siblings(number, size)]
    return sorted({place for start, end in ranges for place in places(start, end) if place[0] >= STORED_LEVEL})


def chunks(number: int, size: int) -> list[tuple[int, int]]:
    """Return the leaves that no stored subtree stands for: the leaf's own 256 and the tree's ragged end."""
    own = number - number % CHUNK
    ragged = size - size % CHUNK
    return sorted({(own, min(own + CHUNK, size)), (ragged, size)} - {(size, size)})


def _fold(tops: list[bytes]) -> bytes:
    *left, folded = tops
    for top in reversed(left):
        folded = node(top, folded)
    return folded
