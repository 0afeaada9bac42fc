"""`POST /v1/chat/completions`: an HTTP request becomes an Ask, its connection a Client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiohttp import web

from gateway_svc.admission import Ask
from gateway_svc.flow import Completions
from gateway_svc.http.errors import DRAINING, REQUEST_ID
from mesh.clock import monotonic_ms
from mesh.errors import DeadlineExceeded, InvalidArgument, Unavailable
from mesh.secret import Secret

READ_SECONDS_MAX = 60
WRITE_SECONDS_MAX = 60
BEARER = "bearer "
CLAMPS = ("", "on", "off")


class Connection:
    """The client of one request, as the flow sees it; after a failed or stuck write it counts as gone."""

    def __init__(self, request: web.Request, instance: str) -> None:
        self._request = request
        self._instance = instance
        self._lost = False
        self.response: web.StreamResponse | None = None

    def gone(self) -> bool:
        transport = self._request.transport
        return self._lost or transport is None or transport.is_closing()

    async def begin(self, headers: dict[str, str]) -> None:
        self.response = web.StreamResponse(
            headers={
                **headers,
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                "x-request-id": self._request[REQUEST_ID],
                "x-mandate-instance": self._instance,
            }
        )
        if self._request.app[DRAINING].is_set():
            self.response.force_close()
        await self._guarded(self.response.prepare(self._request))

    async def write(self, data: bytes) -> None:
        if self.response is not None and not self.gone():
            await self._guarded(self.response.write(data))

    async def _guarded(self, writing: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX):
                await writing
        except (ConnectionError, TimeoutError):
            self._lost = True


class Endpoint:
    """Serves completions, so many at once and no more."""

    def __init__(self, completions: Completions, in_flight_max: int, instance: str) -> None:
        self._completions = completions
        self._in_flight_max = in_flight_max
        self._instance = instance
        self._in_flight = 0

    async def create(self, request: web.Request) -> web.StreamResponse:
        if self._in_flight >= self._in_flight_max:
            raise Unavailable("OVERLOADED", "too many requests at once", retry_after_ms=500)
        self._in_flight += 1
        try:
            return await self._serve(request)
        finally:
            self._in_flight -= 1

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        started_ms = monotonic_ms()
        clamp = request.headers.get("x-mandate-clamp", "").strip().lower()
        if clamp not in CLAMPS:
            raise InvalidArgument("INVALID_FIELD", "x-mandate-clamp must be on or off", field="x-mandate-clamp")
        ask = Ask(
            request_id=request[REQUEST_ID],
            key=key_of(request),
            body=await _body_of(request),
            clamp=clamp != "off",
            mock=request.headers.get("x-mock", ""),
            started_ms=started_ms,
        )
        connection = Connection(request, self._instance)
        reply = await self._completions.run(ask, connection)
        if reply is not None:
            return web.Response(
                status=reply.status, body=reply.body, content_type="application/json", headers=reply.headers
            )
        if connection.response is None:
            raise ConnectionResetError
        return connection.response


async def _body_of(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            return await request.read()
    except TimeoutError:
        raise DeadlineExceeded("BODY_TOO_SLOW", "the body did not arrive in time") from None


def key_of(request: web.Request) -> Secret | None:
    """Return the key that a request presents, as a bearer token or in `x-api-key`."""
    sent = request.headers.get("authorization", "")
    if sent[: len(BEARER)].lower() == BEARER:
        return Secret(sent[len(BEARER) :].strip())
    sent = request.headers.get("x-api-key", "")
    return Secret(sent.strip()) if sent else None
