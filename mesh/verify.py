"""`mandate verify`: check an exported audit chain or a proof offline, with no code of the ledger and no database.

An export is JSON Lines. An entry's line is `{"entry":…,"hash":"…"}`: the SHA-256 over the 32 bytes of the hash before
it and the entry's own bytes as they stand in the line; the first one's predecessor is the SHA-256 of the
organization's id. A head's line follows the entry that it signs: `{"head":…,"keys":[…],"signature":"…"}`, Ed25519
(RFC 8032) over the hash there and the root of a Merkle tree (RFC 9162, section 2.1) over all entries up to there.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mesh.verify_keys import HEX_64, Head, Keys, Wrong, canonical, json_object, whole

ENTRY, HEAD = b'{"entry":', b'{"head":'
SEALED = re.compile(rb',"hash":"([0-9a-f]{64})"}\n')
SEALED_BYTES = 9 + 64 + 3
LINE_BYTES_MAX = 1024 * 1024
GAPS_MAX = 1_000
PROOF_LINES = 3
NOT_VOUCHED = "is signed by no key that the trusted one vouches for"
WHOLE, BROKEN, UNUSABLE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Mark:
    """A place that somebody trusts the chain to pass: the hash at `seq`."""

    seq: int
    seal: bytes


@dataclass(frozen=True, slots=True)
class Complete:
    """Every entry follows from the one before."""

    organization: str
    seq: int
    seal: str
    time: str
    head: Head | None
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """The first line that does not follow, and the entry that it is or should be."""

    line: int
    seq: int
    problem: str


@dataclass(slots=True)
class Chain:
    """How far an export has been gone through."""

    mark: Mark | None
    organization: str = ""
    seq: int = 0
    seal: bytes = b""
    time: str = ""
    head: Head | None = None
    peaks: list[bytes] = field(default_factory=list[bytes])
    told: dict[str, int] = field(default_factory=dict[str, int])  # the last count of each source
    gaps: dict[tuple[str, int], int] = field(
        default_factory=dict[tuple[str, int], int]
    )  # missing, and seen before what

    def go_over(self, line: bytes, keys: Keys) -> None:
        """Go over the next line; Wrong when it does not follow."""
        if line.startswith(HEAD):
            self._sign(keys.head(whole(line)))
        elif line.startswith(ENTRY):
            self._add(line)
        else:
            raise Wrong("is no whole line of an export")
        if self.mark is not None and self.seq == self.mark.seq and self.seal != self.mark.seal:
            raise Wrong("differs from the trusted head")

    def _add(self, line: bytes) -> None:
        text, seal = line[len(ENTRY) : -SEALED_BYTES], SEALED.fullmatch(line, max(0, len(line) - SEALED_BYTES))
        if seal is None:
            raise Wrong("is no whole line of an export")
        entry = _fields(text)
        organization, seq = entry["organization"], entry["seq"]
        if self.seq == 0:
            self.organization, self.seal = organization, hashlib.sha256(organization.encode()).digest()
        if organization != self.organization:
            raise Wrong("belongs to another organization")
        if seq != self.seq + 1:
            raise Wrong(f"is missing: entry {seq} stands in its place")
        found = hashlib.sha256(self.seal + text).digest()
        if found.hex().encode() != seal[1]:
            raise Wrong("is not what was sealed")
        self.seal, self.seq, self.time = found, seq, entry["time"]
        top, position = _leaf(text), seq - 1
        while position & 1:
            top, position = _node(self.peaks.pop(), top), position >> 1
        self.peaks.append(top)
        self._count(entry.get("detail"))

    def _sign(self, head: Head) -> None:
        if self.head is not None and head.seq <= self.head.seq:
            raise Wrong("is signed a second time")
        if head.organization != self.organization or head.seq != self.seq or head.seal != self.seal:
            raise Wrong("is not the one that the head after it signs")
        if head.root != _fold(self.peaks):
            raise Wrong("has not the tree that the head after it signs")
        self.head = head

    @property
    def missing(self) -> tuple[str, ...]:
        """Name what sources told and the chain lacks."""
        return tuple(f"{source} {count} (before seq {seq})" for (source, count), seq in self.gaps.items())

    def _count(self, detail: object) -> None:
        match detail:
            case {"source": str(source), "source_seq": int(count), "fact": dict()}:
                last = self.told.get(source, 0)
                for missing in range(last + 1, min(count, last + 1 + GAPS_MAX - len(self.gaps))):
                    self.gaps[source, missing] = self.seq
                self.gaps.pop((source, count), None)
                self.told[source] = max(last, count)
            case _:
                return


def main(arguments: list[str]) -> int:
    """Verify the file that the arguments name; print the verdict; exit code 0 when all holds, 1 when not, 2 else."""
    parser = argparse.ArgumentParser(prog="mandate verify", allow_abbrev=False)
    parser.add_argument("file", type=Path, nargs="?")
    for name in ("--head", "--key", "--proof"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    if (options.file is None) == (options.proof is None):
        parser.error("give an export, or --proof with a proof")
    try:
        trusted = options.key.read_text(encoding="utf-8") if options.key else None
        head = options.head.read_bytes() if options.head else None
        if options.proof:
            verdict = prove(options.proof.read_bytes(), head=head, key=trusted)
        else:
            with options.file.open("rb") as lines:
                verdict = verify(_bounded(lines), head=head, key=trusted)
    except (OSError, UnicodeDecodeError, Wrong) as error:
        sys.stderr.write(f"mandate verify: {error}\n")
        return UNUSABLE
    text, code = _told(verdict, head_given=head is not None)
    sys.stdout.write(text)
    return code


def verify(lines: Iterable[bytes], head: bytes | None = None, key: str | None = None) -> Complete | Broken:
    """Walk a chain from its first entry to its last; Wrong when what is to be trusted can't be read.

    `head` is a line of an earlier export, `key` a public key; both are trusted.
    """
    keys, chain, number = Keys(key), Chain(None if head is None else _mark(head, key)), 0
    for number, line in enumerate(lines, start=1):
        seq = chain.seq if line.startswith(HEAD) else chain.seq + 1
        try:
            chain.go_over(line, keys)
        except Wrong as wrong:
            return Broken(number, seq, str(wrong))
    if chain.seq == 0:
        return Broken(1, 1, "is missing: the file holds no entry")
    if chain.mark is not None and chain.seq < chain.mark.seq:
        return Broken(number + 1, chain.seq + 1, f"is missing: the trusted head is at {chain.mark.seq}")
    if keys.asked and (chain.head is None or not chain.head.vouched):
        return Broken(number, chain.seq, NOT_VOUCHED)
    return Complete(chain.organization, chain.seq, chain.seal.hex(), chain.time, chain.head, chain.missing)


def prove(content: bytes, head: bytes | None = None, key: str | None = None) -> Complete | Broken:
    """Check that a signed head holds one entry (RFC 9162, section 2.1.3.2): its lines are entry, path and head."""
    lines, keys, mark = content.splitlines(keepends=True), Keys(key), None if head is None else _mark(head, key)
    seq, number = 0, 1
    if len(lines) != PROOF_LINES:
        return Broken(number, seq, f"has not the {PROOF_LINES} lines of a proof")
    try:
        entry, text = _entry(whole(lines[0]))
        seq, number = entry["seq"], 2
        path = _path(whole(lines[1]))
        number = 3
        signed = keys.head(whole(lines[2]))
        _trust(signed, keys, mark)
    except Wrong as wrong:
        return Broken(number, seq, str(wrong))
    if entry["organization"] != signed.organization or not 1 <= seq <= signed.seq:
        return Broken(1, seq, "is not among what the head signs")
    if _climb(_leaf(text), seq - 1, signed.seq, path) != signed.root:
        return Broken(1, seq, "is not in the tree that the head signs")
    return Complete(signed.organization, seq, "", entry["time"], signed, ())


def _trust(signed: Head, keys: Keys, mark: Mark | None) -> None:
    if mark is not None and (signed.seq, signed.seal) != (mark.seq, mark.seal):
        raise Wrong("is proved by another head than the trusted one")
    if keys.asked and not signed.vouched:
        raise Wrong(NOT_VOUCHED)


def _told(verdict: Complete | Broken, *, head_given: bool) -> tuple[str, int]:
    match verdict:
        case Broken(line=line, seq=seq, problem=problem):
            return f"broken at line {line}: seq {seq} {problem}\n", BROKEN
        case Complete(head=head, gaps=gaps):
            who = "" if head is None or head.vouched else ", which nobody vouched for (--key FILE)"
            signed = (
                "; unsigned" if head is None else f"; signed to seq {head.seq} at {head.time}, key {head.key_id}{who}"
            )
            if not verdict.seal:
                return f"{verdict.organization}: seq {verdict.seq} at {verdict.time} is in the chain{signed}\n", WHOLE
            trusted = "; passes the trusted head" if head_given else ""
            told = f"{verdict.organization}: complete to seq {verdict.seq} at {verdict.time}{trusted}{signed}\n"
            missing = "".join(f"missing: {gap}\n" for gap in gaps)
            return f"{told}{missing}head {verdict.seal}\n", BROKEN if gaps else WHOLE


def _mark(line: bytes, key: str | None) -> Mark:
    """Read a trusted head: a head's line, whose signature counts where a key is trusted, or an entry's."""
    line = line.rstrip(b"\n") + b"\n"
    if line.startswith(HEAD):
        head = Keys(key).head(whole(line))
        if key is not None and not head.vouched:
            raise Wrong("the head is signed by no key that the trusted one vouches for")
        return Mark(head.seq, head.seal)
    seal = SEALED.fullmatch(line, max(0, len(line) - SEALED_BYTES))
    seq = json_object(line[len(ENTRY) : -SEALED_BYTES]).get("seq") if line.startswith(ENTRY) and seal else None
    if seal is None or type(seq) is not int:
        raise Wrong("the head is no line of an export")
    return Mark(seq, bytes.fromhex(seal[1].decode()))


def _fields(text: bytes) -> dict[str, Any]:
    """Read an entry that says where it stands."""
    entry = json_object(text)
    if not (
        type(entry.get("organization")) is str and type(entry.get("seq")) is int and type(entry.get("time")) is str
    ):
        raise Wrong("is not an audit entry")
    return entry


def _entry(line: bytes) -> tuple[dict[str, Any], bytes]:
    """Read the first line of a proof: the entry, and its own bytes."""
    if not (line.startswith(ENTRY) and line.endswith(b"}")):
        raise Wrong("is no entry of a proof")
    text = line[len(ENTRY) : -1]
    return _fields(text), text


def _path(line: bytes) -> list[bytes]:
    found = json_object(line)
    path = found.get("path")
    if found.keys() != {"path"} or not isinstance(path, list) or canonical(found) != line:
        raise Wrong("has a path of another form")
    if not all(isinstance(step, str) and HEX_64.fullmatch(step) for step in path):
        raise Wrong("has a path of another form")
    return [bytes.fromhex(step) for step in path]


def _climb(top: bytes, number: int, size: int, path: list[bytes]) -> bytes:
    """Compute the root that a path leads to; b"" when the path is too short or too long."""
    last = size - 1
    for step in path:
        if last == 0:
            return b""
        if number & 1 or number == last:
            top = _node(step, top)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            top = _node(top, step)
        number, last = number >> 1, last >> 1
    return top if last == 0 else b""


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's lines; one that is longer than any of an export ends there, and is then found to be broken."""
    while line := file.readline(LINE_BYTES_MAX):
        yield line


def _leaf(text: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + text).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _fold(peaks: list[bytes]) -> bytes:
    *left, top = peaks
    for peak in reversed(left):
        top = _node(peak, top)
    return top
