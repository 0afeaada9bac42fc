"""A client whose answer is kept as it is sent, also where it has left and hears none of it."""

from __future__ import annotations

from gateway_svc.recording import EVENTS
from gateway_svc.relay import Client
from gateway_svc.replays import Replays, Run

OK = 200


class Recorded:
    """Stands in front of the client of one run; streams go through here, whole answers into `run.recorder`."""

    def __init__(self, client: Client, replays: Replays, run: Run) -> None:
        self._client = client
        self._replays = replays
        self._run = run

    def gone(self) -> bool:
        return self._client.gone()

    async def begin(self, headers: dict[str, str]) -> None:
        self._run.recorder.begin(OK, EVENTS, headers)
        await self._client.begin(headers)

    async def write(self, data: bytes) -> None:
        self._run.recorder.write(data)
        await self._client.write(data)

    async def end(self, last: bytes) -> None:
        """Send the last bytes of a stream once its outcome is kept."""
        self._run.recorder.write(last)
        await self._replays.finished(self._run, self._run.recorder.transcript())
        await self._client.end(last)
