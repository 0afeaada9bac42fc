"""Carry one provider's stream to one client, and know at the end what it used. Nothing is charged here."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway_svc import sse
from gateway_svc.meters import Meter
from gateway_svc.providers import BrokenOff, Exchange
from gateway_svc.settlement import Ending
from gateway_svc.translations import StreamTranslation
from mesh.clock import monotonic_ms
from mesh.telemetry import metrics

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

    async def end(self, last: bytes) -> None:
        """Send the last bytes of a stream."""
        ...


class Relay:
    """One stream on its way; its last events are for the caller to send, once they are paid."""

    def __init__(self, client: Client, meter: Meter, translation: StreamTranslation | None, *, cut: bool) -> None:
        self.first_token_at_ms = 0.0
        self.broken = False
        self.last: list[bytes] = []  # the events that were held back, in the client's dialect
        self._client = client
        self._meter = meter
        self._translation = translation
        self._cut = cut  # whether a stream that nobody reads is ended, rather than read to its end

    @property
    def failure(self) -> bytes:
        """Return the error that the provider reported in its stream; empty when it did not."""
        return self._meter.failure

    async def run(self, exchange: Exchange) -> Ending:
        """Pass the stream on until its end; a client that left is drained for, within bounds, or not."""
        meter = self._meter
        try:
            await self._pass_on(exchange)
        except (BrokenOff, sse.OversizedEvent, TimeoutError, ValueError):
            self.broken = True
        if self._client.gone():
            metrics.STREAMS_LEFT.labels("cut" if self.broken else "drained").inc()
        complete = self._ended()
        usage = meter.usage
        return Ending(
            status=exchange.status,
            usage=usage,
            counted_tokens=None if complete else meter.counted_tokens,  # a whole answer is charged without our count
            complete=complete,
            usage_seen=usage is not None or any(b'"usage"' in event for event in meter.kept),
            told_input=meter.told_input,
            wrote=complete or meter.wrote,
        )

    def _ended(self) -> bool:
        """Put the last events into the client's dialect; False where there is no whole answer, or no way to tell it."""
        meter = self._meter
        if not meter.complete or self.broken or meter.failure:
            return False
        try:
            self.last = meter.kept if self._translation is None else self._translation.end(meter.kept)
        except ValueError:
            self.broken = True
        return not self.broken

    async def _pass_on(self, exchange: Exchange) -> None:
        drained_bytes = 0
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            async for chunk in exchange.chunks():
                await self._send(self._meter.feed(chunk))
                if self._meter.over:
                    return
                if not self._client.gone():
                    continue
                if self._cut:
                    raise BrokenOff("the client left")
                if limit.when() is None:
                    limit.reschedule(loop.time() + DRAIN_SECONDS_MAX)
                drained_bytes += len(chunk)
                if drained_bytes > DRAIN_BYTES_MAX:
                    raise BrokenOff("nobody reads this stream")
            await self._send(self._meter.end())

    async def _send(self, events: bytes) -> None:
        if not events:
            return
        self.first_token_at_ms = self.first_token_at_ms or monotonic_ms()
        if self._translation is not None:
            events = self._translation.take(events)
        if events:
            await self._client.write(events)
