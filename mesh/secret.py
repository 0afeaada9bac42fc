"""A value that must not be shown: its text never reaches a repr, a log line or an error."""

from __future__ import annotations

import hmac
from typing import Self, final


@final
class Secret:
    """Hold a secret text; `reveal()` is the only way to read it, so that each use can be found."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; call it where the secret leaves the process and nowhere else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(("Secret", self._text))

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        message = "a Secret does not pickle"
        raise TypeError(message)
