"""`mandate verify FILE`: check an exported audit chain offline, with no code of the ledger and no database.

An export is one line an entry: a SHA-256 in hex, a space, and the JSON object that it seals. Each hash is taken over
the 32 bytes of the hash before it and the object's UTF-8 bytes; the first one's predecessor is the SHA-256 of the
organization's id. A head is a file with one such line, kept by somebody who trusts it: with it, truncation shows too.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINE = re.compile(r"^([0-9a-f]{64}) (\{.*\})$")
DONE, FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an export."""

    number: int  # of the line in its file, from 1
    seal: bytes
    text: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Complete:
    """Every entry follows from the one before."""

    organization: str
    seq: int
    seal: str
    time: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first entry that does not."""

    line: int
    problem: str


def main(arguments: list[str]) -> int:
    """Verify the file that the arguments name; print the verdict; exit code 0 when the chain holds, else 1."""
    parser = argparse.ArgumentParser(prog="mandate verify", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--head", type=Path)
    options = parser.parse_args(arguments)
    try:
        with options.file.open(encoding="utf-8") as lines:
            head = options.head.read_text(encoding="utf-8") if options.head else None
            verdict = verify(lines, head)
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"mandate verify: {error}\n")
        return FAILED
    match verdict:
        case Broken(line=line, problem=problem):
            sys.stdout.write(f"broken at line {line}: {problem}\n")
            return FAILED
        case Complete(organization=organization, seq=seq, seal=seal, time=time):
            trusted = " and reaches the trusted head" if head else "; without a head, what followed cannot be told"
            sys.stdout.write(f"{organization}: complete to seq {seq} at {time}{trusted}\nhead {seal}\n")
            return DONE


def verify(lines: Iterable[str], head: str | None = None) -> Complete | Broken:
    """Walk a chain from its first entry to its last, and compare it with a trusted head if there is one."""
    trusted = _entry(1, head.strip()) if head is not None else None
    if isinstance(trusted, Broken):
        return Broken(0, f"the head is {trusted.problem}")
    last: Entry | None = None
    reached = trusted is None
    for entry in _entries(lines):
        if isinstance(entry, Broken):
            return entry
        problem = _problem(entry, last)
        if problem is None and trusted is not None and entry.fields["seq"] == trusted.fields["seq"]:
            reached = True
            problem = None if hmac.compare_digest(entry.seal, trusted.seal) else "differs from the trusted head"
        if problem is not None:
            return Broken(entry.number, problem)
        last = entry
    if last is None:
        return Broken(1, "the file holds no entry")
    if not reached and trusted is not None:
        return Broken(last.number, f"cut off after seq {last.fields['seq']}: the head is at {trusted.fields['seq']}")
    return Complete(last.fields["organization"], last.fields["seq"], last.seal.hex(), last.fields["time"])


def _entries(lines: Iterable[str]) -> Iterator[Entry | Broken]:
    for number, line in enumerate(lines, start=1):
        if text := line.rstrip("\n"):
            yield _entry(number, text)


def _entry(number: int, line: str) -> Entry | Broken:
    found = LINE.match(line)
    if found is None:
        return Broken(number, "not a hash and an object")
    try:
        fields = json.loads(found[2])
    except ValueError:
        return Broken(number, "not JSON")
    shapes = {"organization": str, "seq": int, "time": str}
    if not all(type(fields.get(name)) is shape for name, shape in shapes.items()):
        return Broken(number, "not an audit entry")
    return Entry(number, bytes.fromhex(found[1]), found[2], fields)


def _problem(entry: Entry, last: Entry | None) -> str | None:
    seq, organization = entry.fields["seq"], entry.fields["organization"]
    if last is None:
        before, expected = hashlib.sha256(organization.encode()).digest(), 1
    else:
        before, expected = last.seal, last.fields["seq"] + 1
        if organization != last.fields["organization"]:
            return f"seq {seq} belongs to another organization"
    if seq != expected:
        return f"seq {seq} stands where {expected} should"
    if not hmac.compare_digest(hashlib.sha256(before + entry.text.encode()).digest(), entry.seal):
        return f"seq {seq} is not what was sealed"
    return None
