"""Our own count of what a model wrote, for a stream that broke off before its provider told. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway_svc.dialects.reading import Json

BYTES_PER_TOKEN = 4  # for the count of a stream that broke off; never for a bound
ASIDE_BYTES_MAX = 64 * 1024
NAMES = frozenset({"role", "id", "type", "index", "signature"})  # members that are not the model's words


class Counting:
    """Events set aside unread: most streams tell their usage, and then nobody counts."""

    def __init__(self, bytes_written: Callable[[bytes], int], signs: Sequence[bytes] = ()) -> None:
        """Take what adds up the bytes of an event, and what else in one shows that the model is at work."""
        self._bytes_written = bytes_written
        self._signs = signs
        self._signed = False
        self._aside: list[bytes] = []
        self._aside_bytes = 0
        self._written_bytes = 0
        self._written_events = 0

    @property
    def events(self) -> int:
        """Return how many events held something that the model wrote."""
        self._count()
        return self._written_events

    @property
    def wrote(self) -> bool:
        """Return whether the model wrote anything, be it something that is not shown."""
        self._count()
        return self._signed or self._written_events > 0

    @property
    def tokens(self) -> int:
        """Return the count: a token an event, or one for every 4 bytes where that is more."""
        self._count()
        return max(self._written_events, -(-self._written_bytes // BYTES_PER_TOKEN))

    def add(self, events: bytes) -> None:
        """Set whole events aside."""
        self._aside.append(events)
        self._aside_bytes += len(events)
        if self._aside_bytes > ASIDE_BYTES_MAX:
            self._count()

    def _count(self) -> None:
        self._signed = self._signed or any(sign in event for sign in self._signs for event in self._aside)
        for event in b"".join(self._aside).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
            if event and (written := self._bytes_written(event)):
                self._written_bytes += written
                self._written_events += 1
        self._aside.clear()
        self._aside_bytes = 0


def bytes_of_text(value: Json) -> int:
    """Add up the bytes of every text in what a model wrote."""
    waiting: list[Json] = [value]
    size = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            size += len(value.encode(errors="replace"))
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(item for name, item in value.items() if name not in NAMES)
    return size
