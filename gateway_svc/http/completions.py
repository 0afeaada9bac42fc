"""What agents post to a model, in any dialect: an HTTP request becomes an Ask, its connection a Client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from fractions import Fraction
from typing import TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway_svc import genai
from gateway_svc.admission import Ask
from gateway_svc.dialects import Dialect
from gateway_svc.flow import Reply
from gateway_svc.http import answers
from gateway_svc.http.answers import json_response
from gateway_svc.http.draining import DRAINING
from gateway_svc.http.errors import BEGUN, REQUEST_ID, Voice
from gateway_svc.repeating import Repeating
from gateway_svc.repeats import COUNT_HEADER, DEDUPE_HEADER, KEY_HEADER, wish
from gateway_svc.shares import Shares
from gateway_svc.who import Agent
from mesh import failpoints
from mesh.clock import monotonic_ms
from mesh.errors import DeadlineExceeded, InvalidArgument, Unavailable
from mesh.secret import Secret
from mesh.telemetry import metrics, traces

READ_SECONDS_MAX = 60
SEATS_ALONE = Fraction(3, 4)
OK = 200
BEARER = "bearer "
CLAMPS = ("", "on", "off")

Serving: TypeAlias = "Callable[[Ask, Connection], Awaitable[web.StreamResponse]]"


class Connection:
    """The client of one request, as the flow sees it; after a failed or stuck write it is cut off."""

    def __init__(self, request: web.Request, instance: str) -> None:
        self._request = request
        self._instance = instance
        self._lost = False
        self.response: web.StreamResponse | None = None

    def gone(self) -> bool:
        transport = self._request.transport
        return self._lost or transport is None or transport.is_closing()

    async def begin(self, headers: dict[str, str]) -> None:
        response = self._begun(
            OK,
            {
                **headers,
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            },
        )
        await self._guarded(response.prepare(self._request))

    async def write(self, data: bytes) -> None:
        if self.response is not None and not self.gone():
            await self._guarded(self.response.write(data))

    async def end(self, last: bytes) -> None:
        failpoints.reach("gateway.reply.sending")
        await self.write(last)
        failpoints.reach("gateway.reply.sent")

    async def whole(self, reply: Reply) -> None:
        """Send an answer that is no stream; nothing of it is left to be written afterwards."""
        response = self._begun(reply.status, {**reply.headers, "content-type": reply.content_type})
        await self._guarded(answers.send(self._request, response, reply.body))

    async def finish(self) -> None:
        """Send the end of what was begun."""
        if self.response is not None and not self.gone():
            await self._guarded(self.response.write_eof())

    def _begun(self, status: int, headers: Mapping[str, str]) -> web.StreamResponse:
        told = {**headers, **Voice.of(self._request).headers, "x-mandate-instance": self._instance}
        response = self.response = self._request[BEGUN] = web.StreamResponse(status=status, headers=told)
        if self._request.app[DRAINING].begun:
            response.force_close()
        return response

    async def _guarded(self, writing: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(answers.WRITE_SECONDS_MAX):
                await writing
        except (ConnectionError, TimeoutError):
            self._lost = True
            if self._request.transport is not None:
                self._request.transport.abort()  # else what it did not read stays with us


class Seats:
    """What each organization has in flight here: three quarters at most, less where others have many too."""

    def __init__(self, total: int) -> None:
        self._shares = Shares(total, SEATS_ALONE)

    def take(self, organization_id: str) -> None:
        """Take a seat; OVERLOADED when the organization has as many as it may."""
        if not self._shares.take(organization_id, 1):
            metrics.SHED.labels("organization").inc()
            raise Unavailable("OVERLOADED", "too many requests of one organization at once", retry_after_ms=500)

    def leave(self, organization_id: str) -> None:
        """Give a seat back."""
        self._shares.give_back(organization_id, 1)


class Endpoint:
    """Serves completions, so many at once and no more."""

    def __init__(self, completions: Repeating, in_flight_max: int, instance: str) -> None:
        self._completions = completions
        self._in_flight_max = in_flight_max
        self._seats = Seats(in_flight_max)
        self._instance = instance
        self._in_flight = 0

    def create(self, dialect: Dialect) -> Handler:
        """Return the handler of what is posted in one dialect."""

        async def handler(request: web.Request) -> web.StreamResponse:
            return await self._seated(request, dialect, self._serve)

        return handler

    async def count(self, request: web.Request) -> web.StreamResponse:
        """Say how many input tokens a request in Anthropic's dialect would be."""
        return await self._seated(request, Dialect.MESSAGES, self._count)

    async def _seated(self, request: web.Request, dialect: Dialect, serve: Serving) -> web.StreamResponse:
        if self._in_flight >= self._in_flight_max:
            metrics.SHED.labels("requests").inc()
            raise Unavailable("OVERLOADED", "too many requests at once", retry_after_ms=500)
        self._in_flight += 1
        started_ms = monotonic_ms()
        try:
            with traces.serving(f"POST {request.path}", request.headers.get("traceparent")) as span:
                span.set("mandate.request_id", request[REQUEST_ID])
                # A body is read for those alone who have a key, and no organization takes every seat.
                key = key_of(request)
                agent = await self._completions.recognize(key)
                span.set(genai.AGENT_ID, agent.id)
                span.set("mandate.organization_id", agent.organization_id)
                self._seats.take(agent.organization_id)
                try:
                    ask = await self._read(request, dialect, key, agent, started_ms)
                    response = await serve(ask, Connection(request, self._instance))
                    span.set(genai.HTTP_STATUS, response.status)
                    return response
                finally:
                    self._seats.leave(agent.organization_id)
        finally:
            self._in_flight -= 1

    async def _read(
        self, request: web.Request, dialect: Dialect, key: Secret | None, agent: Agent, started_ms: float
    ) -> Ask:
        if request.content.is_eof():  # the body came with its head, as small ones do
            return _ask_of(request, dialect, agent, await request.read(), started_ms)
        body = await _body_of(request)
        return _ask_of(request, dialect, await self._completions.recognize(key), body, started_ms)

    async def _serve(self, ask: Ask, connection: Connection) -> web.StreamResponse:
        reply = await self._completions.run(ask, connection)
        if reply is not None:
            failpoints.reach("gateway.reply.sending")
            if len(reply.body) <= answers.PIECE_BYTES:  # goes out with its head, and waits for no reader
                headers = {**reply.headers, "content-type": reply.content_type}
                return web.Response(status=reply.status, body=reply.body, headers=headers)
            await connection.whole(reply)
            failpoints.reach("gateway.reply.sent")
        if connection.response is None:
            raise ConnectionResetError
        await connection.finish()
        return connection.response

    async def _count(self, ask: Ask, _: Connection) -> web.StreamResponse:
        return json_response({"input_tokens": await self._completions.count(ask)})


def _ask_of(request: web.Request, dialect: Dialect, agent: Agent, body: bytes, started_ms: float) -> Ask:
    clamp = request.headers.get("x-mandate-clamp", "").strip().lower()
    if clamp not in CLAMPS:
        raise InvalidArgument("INVALID_FIELD", "x-mandate-clamp must be on or off", field="x-mandate-clamp")
    return Ask(
        request_id=request[REQUEST_ID],
        dialect=dialect,
        key=key_of(request),
        agent=agent,
        body=body,
        clamp=clamp != "off",
        mock=request.headers.get("x-mock", ""),
        started_ms=started_ms,
        wish=wish(
            request.headers.getall(KEY_HEADER, ()),
            request.headers.get(DEDUPE_HEADER, ""),
            request.headers.get(COUNT_HEADER, ""),
        ),
    )


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
