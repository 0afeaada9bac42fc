"""The key that signs the heads of audit chains: a file outside every database, and `mandate keys` that looks after it.

The file is JSON: the private half of the newest key (32 bytes, Ed25519, RFC 8032) and the public records of all keys,
oldest first. Each record is signed by the key before it, the first by itself, so that whoever trusts one key can follow
to those after it. A rotation destroys the old private half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import canonical
from mesh.home import Home, write_private

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NAME = "audit.json"
FILE_BYTES_MAX = 256 * 1024
KEYS_MAX = 200
HEAD_CONTEXT, KEY_CONTEXT = b"mandate audit head 1\n", b"mandate audit key 1\n"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class BadKeyFile(Exception):
    """The file can't be used; the text says why and never shows the key."""


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """The key that signs, and the public records of it and all before it."""

    private: Ed25519PrivateKey = field(repr=False)
    records: tuple[str, ...]

    @property
    def key_id(self) -> str:
        """Name the key that signs."""
        return id_of(self.records[-1])

    def sign(self, head: str) -> bytes:
        """Sign a head's canonical JSON."""
        return self.private.sign(HEAD_CONTEXT + head.encode())

    def knows(self, head: str, key_id: str, signature: bytes) -> bool:
        """Say whether one of these keys signed a head."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # see `create`
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        public = {id_of(record): json.loads(record)["key"]["public"] for record in self.records}
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(public[key_id])).verify(
                signature, HEAD_CONTEXT + head.encode()
            )
        except (KeyError, InvalidSignature):
            return False
        return True


def ensure(home: Home, at: datetime) -> Path:
    """Return the key file of a home, made on first use."""
    path = home.keys / NAME
    if not path.exists():
        create(path, at)
    return path


def create(path: Path, at: datetime) -> None:
    """Make a first key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # heavy

    private = Ed25519PrivateKey.generate()
    _write(path, private, (_record(private, private, at),))


def rotate(path: Path, at: datetime) -> str:
    """Put a new key in place of the one that signs now, which signs the new one's record; return that record."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # heavy

    keys = read(path)
    if len(keys.records) >= KEYS_MAX:
        raise BadKeyFile(f"{path} has seen {KEYS_MAX} keys, which is the most")
    private = Ed25519PrivateKey.generate()
    record = _record(private, keys.private, at)
    _write(path, private, (*keys.records, record))
    return record


def read(path: Path) -> AuditKeys:
    """Read a key file; BadKeyFile unless it is this user's own, closed to everybody else, and whole."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # heavy

    try:
        with path.open("rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            content = json.loads(file.read(FILE_BYTES_MAX))
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(content["private"]))
        records = tuple(canonical.dumps(record) for record in content["keys"])
        newest = json.loads(records[-1])["key"]
    except OSError as error:
        raise BadKeyFile(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise BadKeyFile(f"{path} is no key file") from None
    if newest.get("public") != _public(private).hex() or newest.get("id") != _id(_public(private)):
        raise BadKeyFile(f"{path} lacks the record of its own key")
    return AuditKeys(private, records)


def id_of(record: str) -> str:
    """Return the id of the key that a record publishes."""
    return str(json.loads(record)["key"]["id"])


def main(arguments: list[str]) -> int:
    """Run `mandate keys`; exit code 0, or 1 when the key file can't be used."""
    from mesh.clock import SystemClock  # noqa: PLC0415  # only where it is used
    from mesh.settings import Runtime, load  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="mandate keys", allow_abbrev=False)
    parser.add_argument("action", choices=("rotate", "show"), help="rotate: a new key; show: the public records")
    parser.add_argument("which", choices=("audit",))
    parser.add_argument("--file", type=Path, help="the key file; $MANDATE_HOME/keys/audit.json")
    options = parser.parse_args(arguments)
    path: Path = options.file or load(Runtime).home / "keys" / NAME
    try:
        shown = (rotate(path, SystemClock().now()),) if options.action == "rotate" else read(path).records
    except BadKeyFile as error:
        sys.stderr.write(f"mandate: {error}\n")
        return 1
    for record in shown:
        sys.stdout.write(f"{record}\n")
    return 0


def _record(made: Ed25519PrivateKey, by: Ed25519PrivateKey, at: datetime) -> str:
    public = _public(made)
    key = {
        "from": _id(_public(by)),
        "id": _id(public),
        "public": public.hex(),
        "time": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    signature = by.sign(KEY_CONTEXT + canonical.dumps(key).encode())
    return canonical.dumps({"key": key, "signature": signature.hex()})


def _public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def _id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:32]


def _write(path: Path, private: Ed25519PrivateKey, records: tuple[str, ...]) -> None:
    content = {"keys": [json.loads(record) for record in records], "private": private.private_bytes_raw().hex()}
    write_private(path, json.dumps(content, indent=2).encode() + b"\n")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {os.geteuid(), 0}:
        raise BadKeyFile(f"{path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & OTHERS:
        raise BadKeyFile(f"{path} is open to other users: chmod 600")
