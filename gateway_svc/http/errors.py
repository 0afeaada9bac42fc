"""Every failure leaves in the shape of its route with its request id; what is no MeshError is told to the log alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway_svc import failures
from gateway_svc.access_tokens import SCOPE
from gateway_svc.dialects import Dialect
from gateway_svc.flow import ClientLeft
from gateway_svc.http.draining import DRAINING
from gateway_svc.limits import RateExceeded
from gateway_svc.tellings import Telling
from gateway_svc.tellings.registry import OPENAI, TELLINGS
from mesh import ids
from mesh.errors import Code, Internal, InvalidArgument, MeshError, NotFound
from mesh.telemetry import logs, metrics

CLIENT_CLOSED_REQUEST = 499
MESSAGES = TELLINGS[Dialect.MESSAGES]
REQUEST_ID = web.RequestKey("request_id", str)
CREDENTIALS = ("authorization", "x-api-key")
MESSAGES_PATH, MODELS_PATH = "/v1/messages", "/v1/models"
VERSION_HEADER = "anthropic-version"
BEGUN = web.RequestKey("begun", web.StreamResponse)  # an answer whose head may have been sent

log = logs.get(__name__)


def is_anthropics(request: web.BaseRequest) -> bool:
    """Return whether Anthropic's clients ask: at its own paths, or by its header at those that both vendors have."""
    path = request.path.removeprefix("/gateway")
    return path.startswith(MESSAGES_PATH) or (path.startswith(MODELS_PATH) and VERSION_HEADER in request.headers)


def identified(instance: str) -> Middleware:
    """Build the middleware that gives each request an id, and each answer its id and ours."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = ids.new(ids.Kind.REQUEST)
        request[REQUEST_ID] = request_id
        draining = request.app[DRAINING]
        with draining.answering():
            response = await _answered(request, handler)
        if response.prepared:  # a stream's head has told its client already whether the connection stays
            return response
        if draining.begun:
            response.force_close()
        return tagged(response, instance, Voice.of(request))

    return middleware


Response = TypeVar("Response", bound=web.StreamResponse)


@dataclass(frozen=True, slots=True)
class Voice:
    """In which dialect a client is told, and of which request."""

    telling: Telling
    request_id: str

    @classmethod
    def of(cls, request: web.BaseRequest) -> Voice:
        """Return the voice of a route; a request that no route has seen gets an id of its own."""
        telling = MESSAGES if is_anthropics(request) else OPENAI
        return cls(telling, request[REQUEST_ID] if REQUEST_ID in request else ids.new(ids.Kind.REQUEST))

    @classmethod
    def unheard(cls) -> Voice:
        """Return the voice for a client of which no request was read."""
        return cls(OPENAI, ids.new(ids.Kind.REQUEST))

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that name the request: ours, and that of the dialect."""
        return {"x-request-id": self.request_id, self.telling.request_id_header: self.request_id}

    def answer(self, error: MeshError) -> web.Response:
        """Return an error as an answer."""
        told = failures.failure(error)
        metrics.REFUSALS.labels(error.reason.lower()).inc()
        headers = {**told.headers, **self.headers}
        if isinstance(error, RateExceeded):
            headers |= self.telling.rates(error.taken)
        body = self.telling.error_body(told.status, told.error, self.request_id)
        return web.Response(status=told.status, body=body, content_type="application/json", headers=headers)


def tagged(response: Response, instance: str, voice: Voice) -> Response:
    """Give an answer its request's id, and say which gateway it is from."""
    response.headers.update(voice.headers)
    response.headers["x-mandate-instance"] = instance
    return response


def raw(error: MeshError, instance: str) -> bytes:
    """Return an error as the bytes of a last answer, for a connection of which no request was read."""
    voice = Voice.unheard()
    response = tagged(voice.answer(error), instance, voice)
    body = bytes(response.body) if isinstance(response.body, bytes | bytearray) else b""
    response.headers["connection"] = "close"
    response.headers["content-length"] = str(len(body))
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        *(f"{name}: {text}" for name, text in response.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
        begun = request.get(BEGUN)
        return _answer_to(request, error) if begun is None else _cut_off(request, begun, error)


def _answer_to(request: web.Request, error: Exception) -> web.Response:
    match error:
        case MeshError():
            return _challenging(request, error)
        case ClientLeft() | ConnectionError() | asyncio.IncompleteReadError():
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        case web.HTTPException():
            return refusal(request, error)
        case web.RequestPayloadError():
            return Voice.of(request).answer(InvalidArgument("BAD_REQUEST", "the body is not what its headers say"))
        case _:
            log.error("http.bug", error, request_id=request[REQUEST_ID], path=request.path[:200])
            return Voice.of(request).answer(Internal("INTERNAL", "the gateway failed"))


def _cut_off(request: web.Request, begun: web.StreamResponse, error: Exception) -> web.StreamResponse:
    """End the connection of an answer that has begun: a second head would be read as a part of it."""
    if not isinstance(error, ClientLeft | ConnectionError):
        log.error("http.bug", error, request_id=request[REQUEST_ID], path=request.path[:200])
        metrics.ANSWERS_CUT.inc()
    if request.transport is not None:
        request.transport.abort()
    return begun


def _challenging(request: web.Request, error: MeshError) -> web.Response:
    """Return an error, with how to prove who asks where that was missing (RFC 6750, section 3)."""
    response = Voice.of(request).answer(error)
    if error.code is Code.UNAUTHENTICATED:
        shown = any(request.headers.get(name) for name in CREDENTIALS)
        response.headers["www-authenticate"] = 'Bearer error="invalid_token"' if shown else 'Bearer realm="mandate"'
    elif error.reason == "INSUFFICIENT_SCOPE":
        response.headers["www-authenticate"] = f'Bearer error="insufficient_scope", scope="{SCOPE}"'
    return response


def refusal(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """Return what aiohttp itself refuses, in our shape."""
    response = Voice.of(request).answer(_refused(request, error))
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["allow"] = ", ".join(sorted(error.allowed_methods))
    return response


def _refused(request: web.BaseRequest, error: web.HTTPException) -> MeshError:
    match error:
        case web.HTTPRequestEntityTooLarge():
            return InvalidArgument("BODY_TOO_LARGE", "the body is too large")
        case web.HTTPMethodNotAllowed():
            return InvalidArgument("METHOD_NOT_ALLOWED", f"{error.method} is not allowed here")
        case web.HTTPExpectationFailed():
            return InvalidArgument("EXPECTATION_FAILED", "of all expectations only 100-continue is met")
        case web.HTTPNotFound():
            return NotFound("UNKNOWN_URL", f"there is nothing at {request.path[:200]}")
        case _:
            return InvalidArgument("BAD_REQUEST", error.reason)
