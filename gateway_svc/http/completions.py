"""What agents post to a model, in any dialect: an HTTP request becomes an Ask, its connection a Client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import TypeAlias

from gateway_svc import genai
from gateway_svc.admission import Admission, Ask
from gateway_svc.dialects import Dialect
from gateway_svc.flow import Completions, Reply
from gateway_svc.http.answers import PIECE_BYTES, Response, Stream, json_response
from gateway_svc.http.errors import INSTANCE_HEADER, Voice
from gateway_svc.http.requests import Request
from gateway_svc.http.routes import Handler
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

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

Serving: TypeAlias = "Callable[[Ask, Client], Awaitable[Response | Stream]]"


class Client:
    """The client of one request, as the flow sees it; after a stuck write it is cut off."""

    def __init__(self, request: Request, instance: str) -> None:
        self._request = request
        self._instance = instance
        self.stream: Stream | None = None

    def gone(self) -> bool:
        return self._request.line.gone()

    async def begin(self, headers: dict[str, str]) -> None:
        self._begin(OK, {**headers, **STREAM_HEADERS})

    async def write(self, data: bytes) -> None:
        if self.stream is not None and not self.gone():
            await self.stream.write(data)

    async def end(self, last: bytes) -> None:
        failpoints.reach("gateway.reply.sending")
        await self.write(last)
        failpoints.reach("gateway.reply.sent")

    async def whole(self, reply: Reply) -> None:
        """Send an answer that is no stream; nothing of it is left to be written afterwards."""
        headers = {**reply.headers, "content-type": reply.content_type}
        await self._begin(reply.status, headers, len(reply.body)).whole(reply.body)

    def finish(self) -> None:
        """Send the end of what was begun."""
        if self.stream is not None and not self.gone():
            self.stream.end()

    def _begin(self, status: int, headers: dict[str, str], length: int | None = None) -> Stream:
        told = {**headers, **Voice.of(self._request).headers, INSTANCE_HEADER: self._instance}
        stream = self.stream = Stream(self._request, status, told, length)
        return stream


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

    def __init__(
        self, admission: Admission, completions: Completions, once: Repeating, in_flight_max: int, instance: str
    ) -> None:
        self._admission = admission
        self._completions = completions
        self._once = once
        self._in_flight_max = in_flight_max
        self._seats = Seats(in_flight_max)
        self._instance = instance
        self._in_flight = 0
        metrics.IN_FLIGHT.set_function(lambda: self._in_flight)

    def create(self, dialect: Dialect) -> Handler:
        """Return the handler of what is posted in one dialect."""

        async def handler(request: Request) -> Response | Stream:
            return await self._seated(request, dialect, self._serve)

        return handler

    async def count(self, request: Request) -> Response | Stream:
        """Say how many input tokens a request in Anthropic's dialect would be."""
        return await self._seated(request, Dialect.MESSAGES, self._count)

    async def _seated(self, request: Request, dialect: Dialect, serve: Serving) -> Response | Stream:
        if self._in_flight >= self._in_flight_max:
            metrics.SHED.labels("requests").inc()
            raise Unavailable("OVERLOADED", "too many requests at once", retry_after_ms=500)
        self._in_flight += 1
        started_ms = monotonic_ms()
        try:
            with traces.serving(f"POST {request.path}", request.header("traceparent")) as span:
                span.set("mandate.request_id", request.id)
                # A body is read for those alone who have a key, and no organization takes every seat.
                key = key_of(request)
                agent = await self._admission.agent(key)
                span.set(genai.AGENT_ID, agent.id)
                span.set("mandate.organization_id", agent.organization_id)
                self._seats.take(agent.organization_id)
                try:
                    ask = await self._read(request, dialect, key, agent, started_ms)
                    response = await serve(ask, Client(request, self._instance))
                    span.set(genai.HTTP_STATUS, response.status)
                    return response
                finally:
                    self._seats.leave(agent.organization_id)
        finally:
            self._in_flight -= 1

    async def _read(
        self, request: Request, dialect: Dialect, key: Secret | None, agent: Agent, started_ms: float
    ) -> Ask:
        if request.body.complete:  # the body came with its head, as small ones do
            return _ask_of(request, dialect, agent, await request.read(), started_ms)
        body = await _body_of(request)
        return _ask_of(request, dialect, await self._admission.agent(key), body, started_ms)

    async def _serve(self, ask: Ask, client: Client) -> Response | Stream:
        reply = await self._once.run(ask, client)
        if reply is not None:
            failpoints.reach("gateway.reply.sending")
            if len(reply.body) <= PIECE_BYTES:  # goes out with its head, and waits for no reader
                return Response(reply.status, reply.body, {**reply.headers, "content-type": reply.content_type})
            await client.whole(reply)
            failpoints.reach("gateway.reply.sent")
        if client.stream is None:
            raise ConnectionResetError
        client.finish()
        return client.stream

    async def _count(self, ask: Ask, _: Client) -> Response:
        return json_response({"input_tokens": await self._completions.count(ask)})


def _ask_of(request: Request, dialect: Dialect, agent: Agent, body: bytes, started_ms: float) -> Ask:
    clamp = request.header("x-mandate-clamp").lower()
    if clamp not in CLAMPS:
        raise InvalidArgument("INVALID_FIELD", "x-mandate-clamp must be on or off", field="x-mandate-clamp")
    return Ask(
        request_id=request.id,
        dialect=dialect,
        key=key_of(request),
        agent=agent,
        body=body,
        clamp=clamp != "off",
        mock=request.header("x-mock"),
        started_ms=started_ms,
        wish=wish(
            request.every(KEY_HEADER),
            request.header(DEDUPE_HEADER),
            request.header(COUNT_HEADER),
        ),
    )


async def _body_of(request: Request) -> bytes:
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            return await request.read()
    except TimeoutError:
        raise DeadlineExceeded("BODY_TOO_SLOW", "the body did not arrive in time") from None


def key_of(request: Request) -> Secret | None:
    """Return the key that a request presents, as a bearer token or in `x-api-key`."""
    sent = request.header("authorization")
    if sent[: len(BEARER)].lower() == BEARER:
        return Secret(sent[len(BEARER) :].strip())
    sent = request.header("x-api-key")
    return Secret(sent.strip()) if sent else None
