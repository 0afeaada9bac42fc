"""Measure `mandate verify` over 1,000,000 entries, and how long a proof and a head of such a chain take to compute.

Run it as `python -m tests.bench.verify_audit`. It needs no database; the export is made in a temporary folder.
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger_svc import heads
from ledger_svc.heads import Growing, Head, Tree
from mesh import audit_keys
from tests.fakes.chains import TIME, Signer, entry

ENTRIES = 1_000_000
SIGNED_EVERY = 100_000
LIMIT_SECONDS = 30
PROOF_LIMIT_MS = 50
DETAIL = {"breach_micros": 0, "charged_micros": 2_400, "model": "mock-model", "output_tokens": 12, "provider": "mock"}


def main() -> int:
    """Print the figures; 1 when one is above its limit."""
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer.new(Path(folder))
        path = Path(folder) / "export.jsonl"
        growing = written(path, signer)
        size_mb = path.stat().st_size / 1_000_000
        began = time.monotonic()
        command = (sys.executable, "-m", "mesh", "verify", str(path))
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.monotonic() - began
        memory_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1_000
    proof_ms = proved_ms(growing)
    print(done.stdout, end="")
    print(
        f"{ENTRIES:,} entries, {size_mb:,.0f} MB: {seconds:.1f} s, {memory_mb:.0f} MB at most (limit {LIMIT_SECONDS} s)"
    )
    print(f"path and root of one entry: {proof_ms:.2f} ms (limit {PROOF_LIMIT_MS} ms)")
    return 0 if done.returncode == 0 and seconds <= LIMIT_SECONDS and proof_ms <= PROOF_LIMIT_MS else 1


def written(path: Path, signer: Signer) -> Growing:
    """Write a signed export and return the chain with its tree."""
    growing = Growing(0, heads.genesis("org_1"), [])
    key_id = audit_keys.read(signer.path).key_id
    with path.open("wb") as file:
        for seq in range(1, ENTRIES + 1):
            text = entry("org_1", seq, DETAIL)
            growing.add(text, hashlib.sha256(growing.seal + text.encode()).digest())
            file.write(f'{{"entry":{text},"hash":"{growing.seal.hex()}"}}\n'.encode())
            if seq % SIGNED_EVERY == 0:
                file.write(signer.line(Head("org_1", seq, growing.seal, growing.root, TIME, key_id)))
    return growing


def proved_ms(growing: Growing) -> float:
    """Return how long a proof takes from what the ledger reads for it: some stored subtrees and 512 entries at most."""
    number = ENTRIES // 3
    texts = {n: entry("org_1", n + 1, DETAIL).encode() for part in heads.chunks(number, ENTRIES) for n in range(*part)}
    stored = {place: growing.made[place] for place in heads.stored_places(number, ENTRIES)}
    began = time.perf_counter()
    tree = Tree(stored, {n: heads.leaf(text) for n, text in texts.items()})
    tree.path(number, ENTRIES)
    if tree.root(ENTRIES) != growing.root:
        message = "the stored tree is not that of the entries"
        raise ValueError(message)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
