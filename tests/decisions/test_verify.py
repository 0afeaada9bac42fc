from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ledger_svc import heads
from ledger_svc.heads import Growing, Tree
from mesh import audit_keys, canonical
from mesh import verify as verifying
from mesh.verify import Broken, Complete, prove, verify
from mesh.verify_keys import Wrong
from tests.fakes.chains import AT, Made, Signer, changes

# The tree of the Certificate Transparency test vectors: roots over the first 1, 2, … 8 of these leaves.
LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path)


@pytest.fixture
def signed(signer: Signer) -> Made:
    """Five entries, signed after the second, and after the fourth by a rotated key."""
    made = Made(signer).add(2, amount=1).sign()
    signer.rotate()
    return made.add(2, reason="é").sign().add()


def verdict_of(content: bytes, head: bytes | None = None, key: str | None = None) -> Complete | Broken:
    return verify(content.splitlines(keepends=True), head, key)


def test_the_tree_is_that_of_certificate_transparency() -> None:
    leaves = {number: heads.leaf(bytes.fromhex(text)) for number, text in enumerate(LEAVES)}
    assert [Tree({}, leaves).root(size + 1).hex() for size in range(8)] == list(ROOTS)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 700])
def test_a_tree_that_grows_is_the_tree_of_the_whole(size: int) -> None:
    made = Made().add(size)
    growing, leaves = made.growing, {n: heads.leaf(text.encode()) for n, text in enumerate(made.texts)}
    whole, kept = Tree({}, leaves), growing.made
    assert set(kept) == {(8, n) for n in range(size // 256)} | {(9, n) for n in range(size // 512)}
    for number in {0, size // 2, size - 1, size - size % 256 - 1} & set(range(size)):
        needed = {n: leaves[n] for start, end in heads.chunks(number, size) for n in range(start, end)}
        stored = {place: kept[place] for place in heads.stored_places(number, size)}
        assert Tree(stored, needed).root(size) == growing.root
        assert len(Tree(stored, needed).path(number, size)) <= (size - 1).bit_length()
    assert whole.root(size) == growing.root if size < 256 else True


def test_a_chain_goes_on_from_its_stored_tree() -> None:
    made = Made().add(700)
    again = Growing(512, Made().add(512).growing.seal, [(9, made.growing.made[9, 0])])
    for text, line in zip(made.texts[512:], made.lines[512:], strict=True):
        again.add(text, bytes.fromhex(json.loads(line)["hash"]))
    assert again.root == made.growing.root


def test_a_whole_chain_is_complete_and_says_whether_it_is_signed(signed: Made, signer: Signer) -> None:
    unsigned = verify(Made().add(3).lines)
    assert isinstance(unsigned, Complete)
    assert (unsigned.seq, unsigned.head) == (3, None)
    for key, vouched in (
        (None, False),
        (signer.records[0], True),
        (json.loads(signer.records[1])["key"]["public"], True),
    ):
        verdict = verify(signed.lines, key=key)
        assert isinstance(verdict, Complete)
        assert verdict.head
        assert (verdict.organization, verdict.seq, verdict.head.seq, verdict.head.vouched) == ("org_1", 5, 4, vouched)


def test_every_single_byte_change_is_found_and_its_entry_named(signed: Made) -> None:
    content = b"".join(signed.lines)
    ends = list(itertools.accumulate(len(line) for line in signed.lines))
    seqs = [1, 2, 2, 3, 4, 4, 5]
    for position, changed in changes(content):
        row = next(row for row, end in enumerate(ends) if position < end)
        verdict = verdict_of(changed)
        assert isinstance(verdict, Broken), (position, changed)
        assert verdict.line == row + 1, (position, verdict)
        assert verdict.seq in {seqs[row], seqs[row] + 1}, (position, verdict)  # a damaged head may look like an entry


def test_every_byte_that_is_left_out_or_put_in_is_found(signed: Made) -> None:
    content = b"".join(signed.lines)
    for position in range(len(content)):
        for changed in (
            content[:position] + content[position + 1 :],
            content[:position] + b" " + content[position:],
            content[:position] + b"\n" + content[position:],
        ):
            assert changed == content or isinstance(verdict_of(changed), Broken), (position, changed)


def test_every_deletion_insertion_and_swap_is_found(signed: Made) -> None:
    lines, last = signed.lines, len(signed.lines) - 1
    head = lines[last]
    for row in range(last):
        without = verify([*lines[:row], *lines[row + 1 :]], head)
        is_head = lines[row].startswith(verifying.HEAD)
        assert isinstance(without, Complete if is_head else Broken), row
        assert is_head or (isinstance(without, Broken) and without.line == row + 1)
        for other in range(row + 1, last + 1):
            swapped = list(lines)
            swapped[row], swapped[other] = lines[other], lines[row]
            assert isinstance(verify(swapped), Broken), (row, other)
    for row, line in itertools.product(range(len(lines) + 1), lines):
        inserted = verify([*lines[:row], line, *lines[row:]])
        assert isinstance(inserted, Broken), (row, line)


def test_every_truncation_is_found_with_a_trusted_head_at_any_byte(signed: Made) -> None:
    content = b"".join(signed.lines)
    for size in range(len(content)):
        verdict = verdict_of(content[:size], signed.lines[-1])
        assert isinstance(verdict, Broken), size
        assert verdict.seq >= 1


@pytest.mark.parametrize("trusted", [0, 1, 2, 3, 5, 6])
def test_a_chain_passes_every_head_that_it_has_passed(signed: Made, trusted: int) -> None:
    assert isinstance(verify(signed.lines, signed.lines[trusted]), Complete)


def test_a_chain_made_anew_is_found_with_a_trusted_head_or_key(signer: Signer, signed: Made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Signer.new(tmp_path / "other")
    forged = Made(other).add(5, amount=2).sign()
    assert isinstance(verify(forged.lines), Complete)
    assert verify(forged.lines, signed.lines[2]) == Broken(2, 2, "differs from the trusted head")
    for lines in (forged.lines, forged.lines[:-1]):
        assert isinstance(verify(lines, key=signer.records[0]), Broken)
    with pytest.raises(Wrong, match="vouches"):
        verify(signed.lines, forged.lines[-1], signer.records[0])


def test_an_older_head_of_the_same_key_cannot_be_put_elsewhere(signed: Made) -> None:
    older = signed.lines[2]
    assert isinstance(verify([*signed.lines[:4], older, signed.lines[4]]), Broken)


@pytest.mark.parametrize("field", ["root", "hash", "seq", "organization", "time", "key_id"])
def test_a_head_that_says_otherwise_is_found_however_it_is_signed(signer: Signer, field: str) -> None:
    made = Made(signer).add(3)
    lie = {"root": "0" * 64, "hash": "0" * 64, "seq": 2, "organization": "org_2", "time": 1, "key_id": "0" * 32}
    right = json.loads(made.head().text)

    class Lie(heads.Head):
        @property
        def text(self) -> str:
            return json.dumps(right | {field: lie[field]}, separators=(",", ":"), sort_keys=True)

    head = made.head()
    lied = Lie(head.organization_id, head.seq, head.seal, head.root, head.time, head.key_id)
    assert isinstance(verify([*made.lines, signer.line(lied)]), Broken)


def test_a_key_under_another_id_is_found_however_it_is_signed(signer: Signer) -> None:
    made = Made(signer).add(3)
    private = audit_keys.read(signer.path).private
    key = json.loads(signer.records[0])["key"] | {"id": "0" * 32, "from": "0" * 32}
    signature = private.sign(audit_keys.KEY_CONTEXT + canonical.dumps(key).encode()).hex()
    lie = canonical.dumps({"key": key, "signature": signature})
    line = signer.line(made.head()).replace(b'"keys":[', f'"keys":[{lie},'.encode())
    verdict = verify([*made.lines, line])
    assert verdict == Broken(4, 3, "is followed by a key under another's id")


@pytest.mark.parametrize(
    ("counts", "gaps"),
    [((1, 2, 3), ()), ((2,), (1,)), ((1, 3, 4, 6), (2, 5)), ((1, 3, 2), ()), ((1, 10**15), tuple(range(2, 1002)))],
)
def test_what_a_source_told_and_the_chain_lacks_is_named(counts: tuple[int, ...], gaps: tuple[int, ...]) -> None:
    made = Made().add().told("identity", *counts).told("vault", 1)
    verdict = verify(made.lines)
    assert isinstance(verdict, Complete)
    assert [gap.split(" (")[0] for gap in verdict.gaps] == [f"identity {count}" for count in gaps]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 13, 256, 300])
def test_a_proof_holds_for_its_entry_in_trees_of_any_size(signer: Signer, size: int) -> None:
    made = Made(signer).add(size)
    for seq in {*range(1, min(size, 13) + 1), size, size // 2 + 1}:
        verdict = prove(made.proof(seq), key=signer.records[0])
        assert isinstance(verdict, Complete), (size, seq)
        assert verdict.seq == seq


def test_every_single_byte_change_of_a_proof_is_found(signer: Signer) -> None:
    proof = Made(signer).add(6, reason="é").proof(3)
    for position, changed in changes(proof):
        assert isinstance(prove(changed), Broken), (position, changed)


def test_a_proof_by_another_key_or_head_is_found(signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Signer.new(tmp_path / "other")
    made = Made(signer).add(3)
    mine, theirs = made.proof(2), Made(other).add(3).proof(2)
    assert isinstance(prove(theirs), Complete)
    assert isinstance(prove(theirs, key=signer.records[0]), Broken)
    assert isinstance(prove(mine, head=made.lines[1]), Broken)
    assert isinstance(prove(mine, head=made.lines[2]), Complete)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mesh", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_says_what_holds_and_exits_with_it(signer: Signer, signed: Made, tmp_path: Path) -> None:
    export, key, proof = tmp_path / "export", tmp_path / "key", tmp_path / "proof"
    export.write_bytes(b"".join(signed.lines))
    key.write_text(signer.records[0])
    proof.write_bytes(signed.proof(1))
    done = run(export, "--key", key)
    assert done.returncode == 0
    assert f"complete to seq 5 at 2026-01-01T00:00:00.000000Z; signed to seq 4 at {AT:%Y}" in done.stdout
    assert "nobody vouched" in run(export).stdout
    assert run("--proof", proof, "--key", key).returncode == 0
    export.write_bytes(b"".join(signed.lines[1:]))
    assert run(export).stdout == "broken at line 1: seq 1 is missing: entry 2 stands in its place\n"
    assert [run(export).returncode, run(tmp_path / "none").returncode, run().returncode] == [1, 2, 2]
    export.write_bytes(b"".join(Made().add().told("vault", 2).lines))
    gap = run(export)
    assert (gap.returncode, "missing: vault 1 (before seq 2)" in gap.stdout) == (1, True)
