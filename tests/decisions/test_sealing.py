from __future__ import annotations

import pytest

from mesh import sealing

KEY = bytes(range(32))
BINDING = ("org_1", "credentials", "crd_1", "provider-secret")
# Sealed under KEY and BINDING by format 1; it must open for ever.
GOLDEN = bytes.fromhex(
    "4d5331db2b6f1e22727c2bc681dcc350ffe07c39c211b79e6f69622068a008eabbf8821dee0869ed1d4ea9e1375da1c2b6cb2a9b5bc979f9"
)


def test_a_value_sealed_by_an_earlier_version_opens() -> None:
    assert sealing.unseal(KEY, GOLDEN, BINDING) == b"sk-golden"


def test_two_seals_of_one_value_have_nothing_in_common() -> None:
    first, second = (sealing.seal(KEY, b"the same", BINDING) for _ in range(2))
    assert first[3:] != second[3:]


def test_every_flipped_bit_breaks_the_seal() -> None:
    for index in range(len(GOLDEN)):
        for bit in range(8):
            broken = bytearray(GOLDEN)
            broken[index] ^= 1 << bit
            with pytest.raises(sealing.BrokenSeal):
                sealing.unseal(KEY, bytes(broken), BINDING)


@pytest.mark.parametrize(
    "binding",
    [
        ("org_2", *BINDING[1:]),
        ("org_1", "tokens", *BINDING[2:]),
        (*BINDING[:2], "crd_2", BINDING[3]),
        BINDING[:3],
        ("org_1credentials", "", *BINDING[2:]),
        (*BINDING, ""),
    ],
)
def test_a_value_moved_elsewhere_does_not_open(binding: tuple[str, ...]) -> None:
    with pytest.raises(sealing.BrokenSeal):
        sealing.unseal(KEY, GOLDEN, binding)


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(sealing.BrokenSeal):
        sealing.unseal(bytes(32), GOLDEN, BINDING)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sealing.seal(bytes(length), b"x", BINDING)
