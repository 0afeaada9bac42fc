"""What the meters of all dialects share: bytes cut into events, of which ordinary ones are passed unread. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod

from gateway_svc import sse
from gateway_svc.meters.counting import Counting
from gateway_svc.meters.foreign import is_foreign
from gateway_svc.usage import TokenUsage

EVENT_END = b"\n\n"


class Following(ABC):
    """One stream; a dialect says which events are ordinary, and reads the others."""

    def __init__(self, counting: Counting, event_bytes_max: int = sse.EVENT_BYTES_MAX) -> None:
        self.kept: list[bytes] = []
        self.failure = b""
        self.over = False
        self.complete = False
        self._foreign = False  # something in it is no event, which nobody can count
        self._splitter = sse.Splitter(event_bytes_max)
        self._counting = counting

    @property
    def counted_tokens(self) -> int | None:
        return None if self._foreign else self._counting.tokens

    @property
    def told_input(self) -> TokenUsage | None:
        return None  # most dialects tell it at the end

    @property
    def wrote(self) -> bool:
        return self._foreign or self._counting.wrote

    def feed(self, data: bytes) -> bytes:
        if self.over:
            return b""
        if not self._splitter.rest and data.endswith(EVENT_END) and self._ordinary(data):
            self._counting.add(data)
            return data
        passing: list[bytes] = []
        self._take_all(self._splitter.feed(data), passing)
        return b"".join(passing)

    def end(self) -> bytes:
        rest = self._splitter.rest.strip()
        if not rest or self.over:
            return b""
        return self._take(rest + EVENT_END)  # ended here, so that an error after it is an event of its own

    def _take_all(self, events: list[bytes], passing: list[bytes]) -> None:
        """Take events not all of which are ordinary; the few that have to be read are found by halving."""
        if len(events) == 1:
            passing.append(self._take(events[0]))
            return
        half = len(events) // 2
        for part in filter(None, (events[:half], events[half:])):
            joined = b"".join(part)
            if self.over:
                return
            if self._ordinary(joined):
                self._counting.add(joined)
                passing.append(joined)
            else:
                self._take_all(part, passing)

    def _take(self, event: bytes) -> bytes:
        """Take one event and return what may be passed on."""
        if self._ordinary(event):
            self._counting.add(event)
            return event
        data = sse.data_of(event)
        if data:
            return self._read(event, data)
        if not is_foreign(event):
            return event
        self.failure, self.over, self._foreign = event.strip(), True, True
        return b""

    @abstractmethod
    def _ordinary(self, data: bytes) -> bool:
        """Return whether these are whole events, none of which has to be read."""

    @abstractmethod
    def _read(self, event: bytes, data: bytes) -> bytes:
        """Read one event and return what may be passed on."""
