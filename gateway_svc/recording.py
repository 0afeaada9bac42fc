"""What a client is sent, collected while it is sent so that it can be given again. Pure; sealing is in `replays`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from gateway_svc.shares import Shares

# Those that are true of the answer, not of the moment: no request id, instance or rate limit.
KEPT_PREFIX, NOT_KEPT, ALSO_KEPT = "x-mandate-", frozenset({"x-mandate-instance"}), frozenset({"x-should-retry"})
REPLAYED = {"idempotency-replayed": "true"}
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
COMPRESSION = 1  # a stream of events shrinks tenfold at the cheapest level


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole answer; `body` is None where it was too large to be kept."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes | None = field(repr=False)

    def head(self) -> str:
        """Return content type and headers as text; the same answer gives the same text."""
        document = {"content_type": self.content_type, "headers": dict(self.headers)}
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()


def packed(body: bytes) -> bytes:
    """Make a body smaller."""
    return zlib.compress(body, COMPRESSION)


def opened(status: int, head: str, packed_body: bytes) -> Transcript:
    """Rebuild a transcript from what `head` and `packed` made of it."""
    document = orjson.loads(head)
    return Transcript(status, document["content_type"], document["headers"], zlib.decompress(packed_body))


class Recorder:
    """Collects one answer up to a bound; past it, or past its owner's share of the room, it counts as too large."""

    def __init__(self, bytes_max: int, room: Shares, owner: str) -> None:
        self._bytes_max = bytes_max
        self._room = room
        self._owner = owner
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._is_open = True
        self._status = 0
        self._content_type = ""
        self._headers: dict[str, str] = {}

    def begin(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Note the head of an answer; only headers that are true of any replay are kept."""
        self._status = status
        self._content_type = content_type
        lowered = {name.lower(): text for name, text in headers.items()}
        self._headers = {name: text for name, text in lowered.items() if _is_kept(name)}

    def write(self, data: bytes) -> None:
        """Add bytes of the body."""
        if not self._is_open:
            return
        if self._size_bytes + len(data) > self._bytes_max or not self._room.take(self._owner, len(data)):
            self.close()
            return
        self._parts.append(data)
        self._size_bytes += len(data)

    def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Record an answer that is not streamed."""
        self.begin(status, JSON, headers)
        self.write(body)

    def transcript(self) -> Transcript:
        """Return the answer so far."""
        if not self._status:
            raise RuntimeError("an answer that was not begun has no transcript")
        body = b"".join(self._parts) if self._is_open else None
        return Transcript(self._status, self._content_type, self._headers, body)

    def close(self) -> None:
        """Forget the body, give its room back and take no more of it."""
        self._room.give_back(self._owner, self._size_bytes)
        self._parts, self._size_bytes = [], 0
        self._is_open = False


def _is_kept(name: str) -> bool:
    return name in ALSO_KEPT or (name.startswith(KEPT_PREFIX) and name not in NOT_KEPT)
