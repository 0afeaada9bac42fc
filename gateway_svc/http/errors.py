"""Every failure leaves in OpenAI's shape with its request id; what is not a MeshError is told to the log alone."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway_svc import failures
from gateway_svc.access_tokens import SCOPE
from gateway_svc.flow import ClientLeft
from gateway_svc.rates import RateExceeded
from mesh import ids
from mesh.errors import Code, Internal, InvalidArgument, MeshError, NotFound
from mesh.telemetry import logs, metrics

CLIENT_CLOSED_REQUEST = 499
REQUEST_ID = web.RequestKey("request_id", str)
CREDENTIALS = ("authorization", "x-api-key")
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
        return response if response.prepared else tagged(response, instance, request_id)

    return middleware


Response = TypeVar("Response", bound=web.StreamResponse)


def tagged(response: Response, instance: str, request_id: str = "") -> Response:
    """Give an answer its request's id, a new one where no request was read, and say which gateway it is from."""
    response.headers["x-request-id"] = request_id or ids.new(ids.Kind.REQUEST)
    response.headers["x-mandate-instance"] = instance
    return response


def raw(error: MeshError, instance: str) -> bytes:
    """Return an error as the bytes of a last answer, for a connection of which no request was read."""
    told = failures.failure(error)
    response = tagged(response_of(error), instance)
    response.headers["connection"] = "close"
    response.headers["content-length"] = str(len(told.body))
    lines = [
        f"HTTP/1.1 {told.status} {response.reason}",
        *(f"{name}: {text}" for name, text in response.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + told.body


def response_of(error: MeshError) -> web.Response:
    """Return an error as an answer."""
    told = failures.failure(error)
    metrics.REFUSALS.labels(error.reason.lower()).inc()
    headers = {**told.headers, **(error.taken.headers() if isinstance(error, RateExceeded) else {})}
    return web.Response(status=told.status, body=told.body, content_type="application/json", headers=headers)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MeshError as error:
        return _challenging(request, error)
    except (ClientLeft, ConnectionError, asyncio.IncompleteReadError):
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except web.HTTPException as error:
        return refusal(request, error)
    except web.RequestPayloadError:
        return response_of(InvalidArgument("BAD_REQUEST", "the body is not what its headers say"))
    except Exception as bug:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
        log.error("http.bug", bug, request_id=request[REQUEST_ID], path=request.path[:200])
        return response_of(Internal("INTERNAL", "the gateway failed"))


def _challenging(request: web.Request, error: MeshError) -> web.Response:
    """Return an error, with how to prove who asks where that was missing (RFC 6750, section 3)."""
    response = response_of(error)
    if error.code is Code.UNAUTHENTICATED:
        shown = any(request.headers.get(name) for name in CREDENTIALS)
        response.headers["www-authenticate"] = 'Bearer error="invalid_token"' if shown else 'Bearer realm="mandate"'
    elif error.reason == "INSUFFICIENT_SCOPE":
        response.headers["www-authenticate"] = f'Bearer error="insufficient_scope", scope="{SCOPE}"'
    return response


def refusal(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """Return what aiohttp itself refuses, in our shape."""
    match error:
        case web.HTTPRequestEntityTooLarge():
            return response_of(InvalidArgument("BODY_TOO_LARGE", "the body is too large"))
        case web.HTTPMethodNotAllowed():
            response = response_of(InvalidArgument("METHOD_NOT_ALLOWED", f"{error.method} is not allowed here"))
            response.headers["allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        case web.HTTPExpectationFailed():
            return response_of(InvalidArgument("EXPECTATION_FAILED", "of all expectations only 100-continue is met"))
        case web.HTTPNotFound():
            return response_of(NotFound("UNKNOWN_URL", f"there is nothing at {request.path[:200]}"))
        case _:
            return response_of(InvalidArgument("BAD_REQUEST", error.reason))
