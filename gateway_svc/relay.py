"""Carry one provider's answer to one client, and know at the end what it used. Nothing is charged here."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway_svc import sse
from gateway_svc.providers import BrokenOff, Exchange
from gateway_svc.settlement import Ending
from gateway_svc.transcript import Transcript, Verdict
from mesh.clock import monotonic_ms

DRAIN_SECONDS_MAX = 60
DRAIN_BYTES_MAX = 8 * 1024 * 1024


class Client(Protocol):
    """Whoever asked, as far as a completion needs to know."""

    def gone(self) -> bool:
        """Return whether the connection is lost; writes then do nothing."""
        ...

    async def begin(self, headers: dict[str, str]) -> None:
        """Send the head of a stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes of a stream, waiting no longer than a minute for a slow reader."""
        ...


class Relay:
    """One stream on its way; what is kept back (usage, [DONE], an error) is for the caller to send last."""

    def __init__(self, client: Client) -> None:
        self.transcript = Transcript()
        self.failure: bytes = b""
        self.first_token_at_ms = 0.0
        self.broken = False
        self._client = client
        self._splitter = sse.Splitter()
        self._foreign = False  # it ended in what is no event, which nobody can count

    async def run(self, exchange: Exchange) -> Ending:
        """Pass the stream on until its end; a client that left is drained for, within bounds."""
        try:
            await self._pass_on(exchange)
        except (BrokenOff, sse.OversizedEvent, TimeoutError):
            self.broken = True
        complete = self.transcript.complete and not self.broken and not self.failure
        counted = None if self._foreign else self.transcript.counted_tokens
        return Ending(exchange.status, self.transcript.usage, counted, complete)

    async def _pass_on(self, exchange: Exchange) -> None:
        drained_bytes = 0
        give_up_at: float | None = None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            async for chunk in exchange.chunks():
                if not await self._take(self._splitter.feed(chunk)):
                    return
                if self._client.gone():
                    if give_up_at is None:
                        give_up_at = loop.time() + DRAIN_SECONDS_MAX
                        limit.reschedule(give_up_at)
                    drained_bytes += len(chunk)
                    if drained_bytes > DRAIN_BYTES_MAX:
                        raise BrokenOff("nobody reads this stream")
            if rest := self._splitter.rest.strip():
                self._foreign = not sse.data_of(rest)
                await self._take([rest + b"\n\n"])  # ended here, so that an error after it is an event of its own

    async def _take(self, events: list[bytes]) -> bool:
        """Follow events and send those that are the client's; False when the stream is over."""
        passing: list[bytes] = []
        going_on = True
        for event in events:
            verdict = self.transcript.take(event)
            if verdict is Verdict.PASS:
                passing.append(event)
            elif verdict is not Verdict.KEEP:
                self.failure = sse.data_of(event) if verdict is Verdict.FAILED else b""
                going_on = False
                break
        if passing:
            self.first_token_at_ms = self.first_token_at_ms or monotonic_ms()
            await self._client.write(b"".join(passing))
        return going_on
