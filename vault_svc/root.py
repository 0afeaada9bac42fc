"""Whatever wraps tenant keys: the interface of a root key's keeper, and the keeper that has a keyring in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh import sealing
from mesh.errors import Internal, Unavailable
from mesh.settings import SettingsError
from vault_svc.keyring import BadKeyring, Keyring, parse

KEYRING_SETTING = "MANDATE_VAULT_KEYRING_FILE"
KEYRING_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key that opens only where its root key is kept."""

    root_key_id: str
    sealed: bytes


class RootKeys(Protocol):
    """A keeper of root keys, near or far: it wraps 32 bytes, bound to what they are for, and unwraps them."""

    async def wrap(self, key: bytes, binding: Sequence[str]) -> Wrapped:
        """Seal a key under the root key that is primary now."""
        ...

    async def unwrap(self, wrapped: Wrapped, binding: Sequence[str]) -> bytes:
        """Open a key; Unavailable when its root key is not to be had, Internal when it does not open."""
        ...


class LocalRootKeys(RootKeys):
    """Root keys from a keyring file, held in this process."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def wrap(self, key: bytes, binding: Sequence[str]) -> Wrapped:
        primary_id = self._keyring.primary_id
        return Wrapped(primary_id, sealing.seal(self._keyring.keys[primary_id], key, binding))

    async def unwrap(self, wrapped: Wrapped, binding: Sequence[str]) -> bytes:
        root_key = self._keyring.keys.get(wrapped.root_key_id)
        if root_key is None:
            raise Unavailable("ROOT_KEY_UNAVAILABLE", "a root key of the vault is not available")
        try:
            return sealing.unseal(root_key, wrapped.sealed, binding)
        except sealing.BrokenSeal:
            raise broken_seal() from None


def read(path: Path) -> LocalRootKeys:
    """Read the keyring file; SettingsError when there is none or it can't be used. There is no fallback."""
    try:
        with path.open("rb") as file:
            content = file.read(KEYRING_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(KEYRING_SETTING, f"{path} cannot be read ({error.strerror})") from None
    try:
        return LocalRootKeys(parse(content[:KEYRING_BYTES_MAX].decode()))
    except UnicodeDecodeError:
        raise SettingsError(KEYRING_SETTING, f"{path} is not JSON") from None
    except BadKeyring as error:
        raise SettingsError(KEYRING_SETTING, f"{path} {error}") from None


def broken_seal() -> Internal:
    """Build the error for what does not open; it never says which part was altered, moved or under another key."""
    return Internal("SEAL_BROKEN", "a sealed value does not open")
