from __future__ import annotations

import hashlib
import json

import pytest

from mesh.verify import Broken, Complete, verify


def chain(count: int, organization: str = "org_1") -> list[str]:
    seal, lines = hashlib.sha256(organization.encode()).digest(), []
    for seq in range(1, count + 1):
        text = json.dumps({"action": "x", "organization": organization, "seq": seq, "time": f"t{seq}"})
        seal = hashlib.sha256(seal + text.encode()).digest()
        lines.append(f"{seal.hex()} {text}\n")
    return lines


def test_a_whole_chain_is_complete() -> None:
    verdict = verify(chain(5))
    assert isinstance(verdict, Complete)
    assert (verdict.organization, verdict.seq) == ("org_1", 5)


def test_every_single_byte_change_is_found_where_it_is() -> None:
    lines = chain(3)
    for row, line in enumerate(lines):
        for position in range(len(line) - 1):
            changed = line[:position] + ("a" if line[position] != "a" else "b") + line[position + 1 :]
            verdict = verify([*lines[:row], changed, *lines[row + 1 :]])
            assert isinstance(verdict, Broken), (row, position)
            assert verdict.line == row + 1


@pytest.mark.parametrize(
    ("order", "line"), [([0, 2, 3, 4], 2), ([0, 2, 1, 3, 4], 2), ([0, 1, 1, 2, 3, 4], 3), ([1, 2, 3, 4], 1)]
)
def test_deletion_reorder_and_insertion_are_found(order: list[int], line: int) -> None:
    lines = chain(5)
    verdict = verify([lines[index] for index in order])
    assert isinstance(verdict, Broken)
    assert verdict.line == line


def test_truncation_is_found_with_a_trusted_head_and_not_without() -> None:
    lines = chain(5)
    assert isinstance(verify(lines[:3]), Complete)
    assert isinstance(verify(lines[:3], head=lines[4]), Broken)
    assert isinstance(verify(lines, head=lines[4]), Complete)
    assert isinstance(verify(lines, head=lines[2]), Complete)


def test_a_chain_sealed_anew_is_found_with_a_trusted_head() -> None:
    lines = chain(5)
    forged = chain(5, organization="org_2")
    assert isinstance(verify(forged, head=lines[4]), Broken)
