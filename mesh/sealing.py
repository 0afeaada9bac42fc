"""Seal small secrets at rest: AES-256-GCM under a key derived for each record, bound to where the record belongs.

Format 1: "MS1", 16 bytes of salt, 12 bytes of nonce, ciphertext with a 16-byte tag. The record's key is HKDF-SHA256
(RFC 5869) of the master key and the salt; the associated data is the length-prefixed list of the binding's parts, so a
sealed value moved to another tenant, table, row or purpose does not open (NIST SP 800-38D).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = b"MS1"
KEY_BYTES, SALT_BYTES, NONCE_BYTES, TAG_BYTES = 32, 16, 12, 16
INFO = b"mandate sealing 1"


class BrokenSeal(Exception):
    """The sealed value was altered, moved, or sealed under another key."""


def seal(key: bytes, plaintext: bytes, binding: Sequence[str]) -> bytes:
    """Encrypt `plaintext` so that it opens only under `key` and with the same binding."""
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    return VERSION + salt + nonce + AESGCM(_record_key(key, salt)).encrypt(nonce, plaintext, _bound(binding))


def unseal(key: bytes, sealed: bytes, binding: Sequence[str]) -> bytes:
    """Open what `seal` made; BrokenSeal when anything differs."""
    start = len(VERSION)
    if not sealed.startswith(VERSION) or len(sealed) < start + SALT_BYTES + NONCE_BYTES + TAG_BYTES:
        raise BrokenSeal("not a sealed value")
    salt = sealed[start : start + SALT_BYTES]
    nonce = sealed[start + SALT_BYTES : start + SALT_BYTES + NONCE_BYTES]
    try:
        body = sealed[start + SALT_BYTES + NONCE_BYTES :]
        return AESGCM(_record_key(key, salt)).decrypt(nonce, body, _bound(binding))
    except InvalidTag:
        raise BrokenSeal("the sealed value does not open here") from None


def _record_key(key: bytes, salt: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        message = f"a sealing key has {KEY_BYTES} bytes"
        raise ValueError(message)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=INFO).derive(key)


def _bound(parts: Sequence[str]) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"".join(struct.pack(">I", len(part)) + part for part in encoded)
