"""The signed heads of an exported audit chain as `mandate verify` reads them; no code of the ledger's is in here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

HEX_64, HEX_32 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")
HEX_128 = re.compile(r"[0-9a-f]{128}")
HEAD_CONTEXT, KEY_CONTEXT = b"mandate audit head 1\n", b"mandate audit key 1\n"
HEAD_SHAPE = {"hash": HEX_64, "key_id": HEX_32, "organization": str, "root": HEX_64, "seq": int, "time": str}
KEY_SHAPE = {"from": HEX_32, "id": HEX_32, "public": HEX_64, "time": str}


class Wrong(Exception):
    """A line is not what it should be; the text says in which way."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head's line says; its signature is that of the key that it names."""

    organization: str
    seq: int
    seal: bytes
    root: bytes
    time: str
    key_id: str
    vouched: bool  # a trusted key signed it, or one that follows from that


class Keys:
    """Public keys by id, and which of them are trusted."""

    def __init__(self, trusted: str | None) -> None:
        self.asked = trusted is not None
        self._public: dict[str, bytes] = {}
        self._vouched: set[str] = set()
        if trusted is not None:
            public = _trusted_key(trusted)
            self._public[_id(public)] = public
            self._vouched.add(_id(public))

    def head(self, line: bytes) -> Head:
        """Read a head's line and check every signature in it; Wrong when one does not hold."""
        found = json_object(line)
        keys, signature = found.get("keys"), found.get("signature")
        if found.keys() != {"head", "keys", "signature"} or not isinstance(keys, list) or canonical(found) != line:
            raise Wrong("is followed by a head of another form")
        for record in keys:
            self._add(record)
        head = found["head"]
        shaped(head, HEAD_SHAPE, "is followed by a head of another form")
        key_id = head["key_id"]
        if key_id not in self._public:
            raise Wrong("is signed with a key that is not given")
        self._check(key_id, signature, HEAD_CONTEXT + canonical(head), "is followed by a head with a wrong signature")
        seal, root = bytes.fromhex(head["hash"]), bytes.fromhex(head["root"])
        return Head(head["organization"], head["seq"], seal, root, head["time"], key_id, key_id in self._vouched)

    def _add(self, record: Any) -> None:
        """Take a key up once the one before it signed for it; the first one signs for itself."""
        if not isinstance(record, dict) or record.keys() != {"key", "signature"}:
            raise Wrong("is followed by a key of another form")
        key = record["key"]
        shaped(key, KEY_SHAPE, "is followed by a key of another form")
        public = bytes.fromhex(key["public"])
        if key["id"] != _id(public):
            raise Wrong("is followed by a key under another's id")
        before = self._public.get(key["from"], public if key["from"] == key["id"] else None)
        if before is None:
            raise Wrong("is followed by a key that no key before it vouches for")
        self._public.setdefault(key["id"], public)
        wrong = "is followed by a key with a wrong signature"
        self._check(key["from"], record["signature"], KEY_CONTEXT + canonical(key), wrong)
        if key["from"] in self._vouched:
            self._vouched.add(key["id"])

    def _check(self, key_id: str, signature: object, message: bytes, wrong: str) -> None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # heavy, and only signed exports need it
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        if not isinstance(signature, str) or not HEX_128.fullmatch(signature):
            raise Wrong(wrong)
        try:
            Ed25519PublicKey.from_public_bytes(self._public[key_id]).verify(bytes.fromhex(signature), message)
        except (InvalidSignature, ValueError):
            raise Wrong(wrong) from None


def _trusted_key(text: str) -> bytes:
    """Read a public key: 64 hex digits, or the first record of `mandate keys show audit`."""
    first = text.strip().partition("\n")[0]
    if not HEX_64.fullmatch(first):
        key = json_object(first.encode()).get("key")
        shaped(key, KEY_SHAPE, "the key is no public key")
        first = str(key["public"]) if isinstance(key, dict) else ""
    return bytes.fromhex(first)


def json_object(text: bytes) -> dict[str, Any]:
    """Read a JSON object; Wrong when it is none."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise Wrong("is not JSON") from None
    if not isinstance(found, dict):
        raise Wrong("is not a JSON object")
    return found


def shaped(found: Any, shape: dict[str, Any], wrong: str) -> None:
    """Refuse an object that has other members than `shape`, or members of another kind."""
    if not isinstance(found, dict) or found.keys() != shape.keys():
        raise Wrong(wrong)
    for name, kind in shape.items():
        value = found[name]
        fits = type(value) is kind if isinstance(kind, type) else isinstance(value, str) and kind.fullmatch(value)
        if not fits:
            raise Wrong(wrong)


def canonical(value: object) -> bytes:
    """Return the one form (RFC 8785) that heads, keys and paths are written in."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except (UnicodeEncodeError, RecursionError):
        raise Wrong("is not JSON") from None


def whole(line: bytes) -> bytes:
    """Return a line without its end; Wrong when it has none."""
    if not line.endswith(b"\n"):
        raise Wrong("is cut off in the middle of a line")
    return line[:-1]


def _id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:32]
