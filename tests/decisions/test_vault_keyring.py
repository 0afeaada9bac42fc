from __future__ import annotations

import base64
import hashlib
import json

import pytest

from vault_svc.keyring import BadKeyring, parse


def entry(key_id: str, key: bytes, state: str) -> dict[str, object]:
    return {"id": key_id, "key": base64.b64encode(key).decode(), "state": state}


def keyring(*entries: object) -> str:
    return json.dumps({"keys": entries})


def random_key(number: int) -> bytes:
    """Return the same bytes in each process of a run: a test's name must not change."""
    return hashlib.sha256(str(number).encode()).digest()


FIRST, SECOND = random_key(1), random_key(2)


def test_the_primary_key_wraps_and_the_others_stay_readable() -> None:
    ring = parse(keyring(entry("k1", FIRST, "enabled"), entry("k2", SECOND, "primary")))
    assert (ring.primary_id, dict(ring.keys)) == ("k2", {"k1": FIRST, "k2": SECOND})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "JSON"),
        ("[]", "must hold"),
        ("{}", "must hold"),
        (keyring(), "must hold"),
        (json.dumps({"keys": {"k1": "x"}}), "must hold"),
        (keyring("k1"), "an object"),
        (keyring(*(entry(f"k{n}", random_key(n), "enabled") for n in range(17))), "must hold"),
        (keyring(entry("k1", FIRST, "enabled")), "exactly one key must be primary, not 0"),
        (keyring(entry("k1", FIRST, "primary"), entry("k2", SECOND, "primary")), "exactly one key must be primary"),
        (keyring(entry("k1", FIRST, "primary"), entry("k1", SECOND, "enabled")), "twice"),
        (keyring(entry("k1", FIRST, "primary"), entry("k2", FIRST, "enabled")), "bytes of another"),
        (keyring(entry("k1", FIRST, "destroyed")), "state"),
        (keyring({"id": "k1", "key": base64.b64encode(FIRST).decode(), "state": ["primary"]}), "state"),
        (keyring(entry("k1", FIRST[:31], "primary")), "32 bytes"),
        (keyring(entry("k1", FIRST + b"x", "primary")), "32 bytes"),
        (keyring({"id": "k1", "key": "?" * 44, "state": "primary"}), "32 bytes"),
        (keyring({"id": "k1", "key": None, "state": "primary"}), "32 bytes"),
        (keyring(entry("k1", bytes(32), "primary")), "not random"),
        (keyring(entry("k1", b"password" * 4, "primary")), "not random"),
        (keyring(entry("", FIRST, "primary")), "id"),
        (keyring(entry("K 1", FIRST, "primary")), "id"),
    ],
)
def test_a_keyring_that_is_not_whole_is_refused_without_a_word_of_its_keys(text: str, problem: str) -> None:
    with pytest.raises(BadKeyring) as refused:
        parse(text)
    assert problem in str(refused.value)
    assert base64.b64encode(FIRST).decode() not in str(refused.value)


def test_a_keyring_does_not_show_its_keys() -> None:
    assert "\\x" not in repr(parse(keyring(entry("k1", FIRST, "primary"))))
