"""The local keyring: root keys by id, one of which wraps. Reads a keyring's text; no files in here."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeGuard

KEY_BYTES = 32
KEYS_MAX = 16
DISTINCT_BYTES_MIN = 8  # random bytes always have more; zeros and repeated words do not
KEY_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BadKeyring(Exception):
    """The keyring can't be used; the text says why and holds no key."""


class State(StrEnum):
    """What a root key is used for: the primary one wraps, the others only unwrap."""

    PRIMARY = "primary"
    ENABLED = "enabled"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Root keys by id, and which one wraps new tenant keys."""

    primary_id: str
    keys: Mapping[str, bytes] = field(repr=False)


def parse(text: str) -> Keyring:
    """Read `{"keys": [{"id", "key": base64 of 32 bytes, "state": "primary" | "enabled"}]}`, at most 16 of them."""
    try:
        document: object = json.loads(text)
    except ValueError:
        raise BadKeyring("is not JSON") from None
    entries = document.get("keys") if _is_object(document) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= KEYS_MAX:
        raise BadKeyring(f'must hold 1 to {KEYS_MAX} "keys"')
    keys: dict[str, bytes] = {}
    primary: list[str] = []
    for entry in entries:
        key_id, key, state = _entry(entry)
        if key_id in keys:
            raise BadKeyring(f"key {key_id!r} stands there twice")
        if key in keys.values():
            raise BadKeyring(f"key {key_id!r} has the bytes of another key")
        keys[key_id] = key
        if state is State.PRIMARY:
            primary.append(key_id)
    if len(primary) != 1:
        raise BadKeyring(f"exactly one key must be primary, not {len(primary)}")
    return Keyring(primary[0], MappingProxyType(keys))


def _entry(entry: object) -> tuple[str, bytes, State]:
    if not _is_object(entry):
        raise BadKeyring('each of "keys" must be an object')
    key_id, text, state = entry.get("id"), entry.get("key"), entry.get("state")
    if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
        raise BadKeyring("each key needs an id: 1 to 64 lower-case letters, digits, dots, underscores or hyphens")
    if not isinstance(state, str) or state not in set(State):
        raise BadKeyring(f"the state of key {key_id!r} must be primary or enabled")
    return key_id, _key(key_id, text), State(state)


def _key(key_id: str, text: object) -> bytes:
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise BadKeyring(f"key {key_id!r} must be {KEY_BYTES} bytes in base64")
    if len(set(key)) < DISTINCT_BYTES_MIN:
        raise BadKeyring(f"key {key_id!r} is not random")
    return key


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)
