"""How a server ends without losing anybody: whoever may still send a request on an open connection is answered."""

from __future__ import annotations

import asyncio

from mesh.telemetry import logs

# A client whose stream began before the end was told nothing of it, and may send its next request with the last byte.
LAST_ANSWERS_SECONDS = 0.5

log = logs.get(__name__)


class Draining:
    """Whether a server is to end, and what it still answers."""

    def __init__(self) -> None:
        self.begun = False
        self._open = 0
        self._ended = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a request as open."""
        self._open += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count it as answered."""
        self._open -= 1
        self._ended += 1
        if not self._open:
            self._idle.set()

    async def quiet(self, seconds_max: float) -> None:
        """Have every answer from now on say that its connection ends; wait until none was given for half a second."""
        self.begun = True
        try:
            async with asyncio.timeout(seconds_max):
                ended = -1
                while self._open or ended != self._ended:
                    await self._idle.wait()
                    ended = self._ended
                    await asyncio.sleep(LAST_ANSWERS_SECONDS)
        except TimeoutError:
            log.warn("http.drain_incomplete", unanswered=self._open)
