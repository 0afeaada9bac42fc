"""Chains as the ledger makes them, in memory: signed exports and proofs for the verifier's tests and benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ledger_svc import heads
from ledger_svc.heads import Growing, Head, Tree
from mesh import audit_keys, canonical

AT = datetime(2026, 1, 1, tzinfo=UTC)
TIME = "2026-01-01T00:00:00.000000Z"


@dataclass
class Signer:
    """A key file of a test's own."""

    path: Path

    @classmethod
    def new(cls, folder: Path) -> Signer:
        audit_keys.create(folder / "audit.json", AT)
        return cls(folder / "audit.json")

    def rotate(self) -> None:
        audit_keys.rotate(self.path, AT)

    @property
    def records(self) -> tuple[str, ...]:
        return audit_keys.read(self.path).records

    def line(self, head: Head) -> bytes:
        keys = audit_keys.read(self.path)
        signature = keys.sign(head.text).hex()
        return f'{{"head":{head.text},"keys":[{",".join(keys.records)}],"signature":"{signature}"}}\n'.encode()


@dataclass
class Made:
    """A chain that grows entry by entry."""

    signer: Signer | None = None
    organization: str = "org_1"
    texts: list[str] = field(default_factory=list[str])
    lines: list[bytes] = field(default_factory=list[bytes])
    growing: Growing = field(init=False)

    def __post_init__(self) -> None:
        self.growing = Growing(0, heads.genesis(self.organization), [])

    def add(self, count: int = 1, **detail: object) -> Made:
        for _ in range(count):
            text = entry(self.organization, self.growing.seq + 1, detail)
            seal = hashlib.sha256(self.growing.seal + text.encode()).digest()
            self.growing.add(text, seal)
            self.texts.append(text)
            self.lines.append(f'{{"entry":{text},"hash":"{seal.hex()}"}}\n'.encode())
        return self

    def head(self) -> Head:
        assert self.signer
        key_id = audit_keys.read(self.signer.path).key_id
        return Head(self.organization, self.growing.seq, self.growing.seal, self.growing.root, TIME, key_id)

    def sign(self) -> Made:
        assert self.signer
        self.lines.append(self.signer.line(self.head()))
        return self

    def told(self, source: str, *counts: int) -> Made:
        for count in counts:
            self.add(fact={}, source=source, source_seq=count, source_time=TIME)
        return self

    def proof(self, seq: int) -> bytes:
        """Prove an entry by the chain's own head."""
        assert self.signer
        tree = Tree(self.growing.made, {n: heads.leaf(text.encode()) for n, text in enumerate(self.texts)})
        path = [step.hex() for step in tree.path(seq - 1, len(self.texts))]
        entry, steps = f'{{"entry":{self.texts[seq - 1]}}}\n', canonical.dumps({"path": path})
        return entry.encode() + steps.encode() + b"\n" + self.signer.line(self.head())


def entry(organization: str, seq: int, detail: object) -> str:
    fields = {"action": "charge.settled", "actor": "agt_1", "detail": detail, "organization": organization}
    return json.dumps(
        fields | {"seq": seq, "subject": "réq", "time": TIME}, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    )


def changes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield every position of a file with every one of several other bytes in its place."""
    for position, byte in enumerate(content):
        for other in {byte ^ 1, byte ^ 0x20, ord("0"), ord('"'), ord("\n"), 0xFF} - {byte}:
            yield position, content[:position] + bytes([other]) + content[position + 1 :]
