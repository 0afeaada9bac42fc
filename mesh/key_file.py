"""Read the file of a service's sealing key: `Home.ensure_key` makes it, `mesh.sealing` uses what it holds."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from mesh import sealing
from mesh.settings import SettingsError


def read(path: Path, *, setting: str) -> bytes:
    """Return the 32 bytes of a key kept in base64; SettingsError under the setting's name when the file has none."""
    try:
        key = base64.b64decode(path.read_text().strip(), validate=True)
    except OSError as error:
        raise SettingsError(setting, f"{path} cannot be read ({error.strerror})") from None
    except (binascii.Error, ValueError):
        raise SettingsError(setting, f"{path} does not hold base64") from None
    if len(key) != sealing.KEY_BYTES:
        raise SettingsError(setting, f"{path} must hold {sealing.KEY_BYTES} bytes in base64")
    return key
