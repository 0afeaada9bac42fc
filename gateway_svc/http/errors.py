"""Every failure leaves in the shape of its route with its request id; what is no MeshError is told to the log alone."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway_svc import failures
from gateway_svc.dialects import Dialect
from gateway_svc.flow import ClientLeft
from gateway_svc.limits import RateExceeded
from gateway_svc.tellings import Telling
from gateway_svc.tellings.registry import OPENAI, TELLINGS
from mesh import ids
from mesh.errors import Internal, InvalidArgument, MeshError, NotFound
from mesh.telemetry import logs, metrics

CLIENT_CLOSED_REQUEST = 499
MESSAGES = TELLINGS[Dialect.MESSAGES]
REQUEST_ID = web.RequestKey("request_id", str)
DRAINING = web.AppKey("draining", asyncio.Event)

log = logs.get(__name__)


def identified(instance: str) -> Middleware:
    """Build the middleware that gives each request an id, and each answer its id and ours."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = ids.new(ids.Kind.REQUEST)
        request[REQUEST_ID] = request_id
        response = await _answered(request, handler)
        if request.app[DRAINING].is_set():
            response.force_close()  # else the client's next request meets a closed connection
        if not response.prepared:
            response.headers.update(told_id(request))
            response.headers["x-mandate-instance"] = instance
        return response

    return middleware


def told_id(request: web.Request) -> dict[str, str]:
    """Return the headers that name a request: ours, and that of the route's dialect."""
    request_id = request[REQUEST_ID]
    return {"x-request-id": request_id, telling_of(request).request_id_header: request_id}


def telling_of(request: web.Request) -> Telling:
    """Return in which dialect a route's clients are told of errors."""
    return MESSAGES if request.path.removeprefix("/gateway").startswith("/v1/messages") else OPENAI


def response_of(error: MeshError, request: web.Request) -> web.Response:
    """Return an error as an answer."""
    told = failures.failure(error)
    metrics.REFUSALS.labels(error.reason.lower()).inc()
    headers = {**told.headers, **(error.taken.headers() if isinstance(error, RateExceeded) else {})}
    body = telling_of(request).error_body(told.status, told.error, request[REQUEST_ID])
    return web.Response(status=told.status, body=body, content_type="application/json", headers=headers)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MeshError as error:
        return response_of(error, request)
    except (ClientLeft, ConnectionError, asyncio.IncompleteReadError):
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except web.HTTPException as error:
        return _refusal(request, error)
    except web.RequestPayloadError:
        return response_of(InvalidArgument("BAD_REQUEST", "the body is not what its headers say"), request)
    except Exception as bug:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
        log.error("http.bug", bug, request_id=request[REQUEST_ID], path=request.path[:200])
        return response_of(Internal("INTERNAL", "the gateway failed"), request)


def _refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """Return what aiohttp itself refuses, in our shape."""
    match error:
        case web.HTTPRequestEntityTooLarge():
            return response_of(InvalidArgument("BODY_TOO_LARGE", "the body is too large"), request)
        case web.HTTPMethodNotAllowed():
            refused = InvalidArgument("METHOD_NOT_ALLOWED", f"{error.method} is not allowed here")
            response = response_of(refused, request)
            response.headers["allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        case web.HTTPNotFound():
            return response_of(NotFound("UNKNOWN_URL", f"there is nothing at {request.path[:200]}"), request)
        case _:
            return response_of(InvalidArgument("BAD_REQUEST", error.reason), request)
