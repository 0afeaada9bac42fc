"""The edge over HTTP: GraphQL by POST, health, the page at /. What an operation does is in `execution.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

import orjson
from aiohttp import web
from graphql import print_schema
from grpc_health.v1 import health_pb2, health_pb2_grpc

from graphql_edge.execution import Answer, Engine, Request, refusal
from graphql_edge.operation import Operation
from graphql_edge.sessions import Anonymous, Forged, Presented, Sessions
from graphql_edge.stubs import Stubs
from mesh import client, ids
from mesh.clock import monotonic_ms
from mesh.errors import MeshError
from mesh.telemetry import logs, metrics, traces

BODY_BYTES_MAX = 64 * 1024
HEALTH_MS_MAX = 1_000
JSON, GRAPHQL_JSON = "application/json", "application/graphql-response+json"
INDEX = Path(__file__).parent / "static" / "index.html"
MEMBERS = {"query", "operationName", "variables", "extensions"}
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "server": "mandate",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Edge:
    """The handlers and what they stand on."""

    engine: Engine
    stubs: Stubs
    sessions: Sessions
    instance: str

    def app(self) -> web.Application:
        """Return the public application."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_told])
        app.on_response_prepare.append(self._headers)
        app.router.add_post("/graphql", self.graphql)
        app.router.add_options("/graphql", self.preflight)
        app.router.add_get("/schema.graphql", self.schema)
        app.router.add_get("/", self.index)
        _add_health(app, self)
        return app

    def inner_app(self) -> web.Application:
        """Return health and metrics alone, for this process's own port."""
        app = web.Application(middlewares=[_told])
        _add_health(app, self)
        return app

    async def graphql(self, request: web.Request) -> web.Response:
        """Execute one operation."""
        operation, began_ms = Operation(self.stubs), monotonic_ms()
        with traces.serving("graphql", request.headers.get("traceparent")):
            answer = await self._answer(request, operation)
        media = _media(request.headers.get("accept", "*/*"))
        if media is None:
            answer, media = refusal(406, "NOT_ACCEPTABLE", f"this answers {GRAPHQL_JSON} or {JSON}", operation), JSON
        status = 200 if answer.well_formed and media == JSON else answer.status
        response = web.Response(body=orjson.dumps(answer.body), status=status, content_type=media, charset="utf-8")
        response.headers["x-request-id"] = operation.request_id
        response.headers["cache-control"] = "no-store"
        if status == web.HTTPUnauthorized.status_code:
            response.headers["www-authenticate"] = "Bearer"
        self.sessions.keep(response, operation, https=request.secure)
        took_ms = monotonic_ms() - began_ms
        metrics.OPERATIONS.labels(str(status)).inc()
        metrics.OPERATION_SECONDS.observe(took_ms / 1000)
        log.event(
            "graphql.answered", request_id=operation.request_id, status=status, ms=round(took_ms), calls=operation.calls
        )
        return response

    async def preflight(self, request: web.Request) -> web.Response:
        """Tell a browser whether a page of another site may call."""
        if request.headers.get("origin") not in self.sessions.cors_origins:
            return web.Response(status=403)
        allowed = {
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "authorization, content-type, x-mandate-csrf",
            "access-control-max-age": "600",
        }
        return web.Response(status=204, headers=allowed)

    async def schema(self, _request: web.Request) -> web.Response:
        """Return the schema's text, where anybody may read it."""
        if not self.engine.introspection:
            raise web.HTTPNotFound
        return web.Response(text=print_schema(self.engine.documents.schema), content_type="text/plain")

    async def index(self, _request: web.Request) -> web.FileResponse:
        """Return the page that says what this is."""
        return web.FileResponse(INDEX)

    async def ready(self, _request: web.Request) -> web.Response:
        """Say which service is down."""
        states = await asyncio.gather(*(_serves(self.stubs, service) for service in self.stubs.channels))
        found = dict(zip(self.stubs.channels, ("up" if state else "down" for state in states), strict=True))
        status = 200 if all(states) else 503
        return _json({"status": "ready" if all(states) else "not ready", "dependencies": found}, status)

    async def _answer(self, request: web.Request, operation: Operation) -> Answer:
        try:
            sent = await _read(request)
        except ValueError as problem:
            return refusal(400, "BAD_REQUEST", str(problem), operation)
        presented = self.sessions.presented(request.headers, request.cookies)
        match presented:
            case Forged(message):
                operation.forged = message
            case Presented(token):
                operation.access_token = token
            case Anonymous():
                pass
            case _:
                assert_never(presented)
        answer = await self.engine.run(sent, operation)
        if answer.status != web.HTTPUnauthorized.status_code or not (
            isinstance(presented, Presented) and presented.by_cookie
        ):
            return answer
        # A session that is over must not keep its browser from logging in.
        operation.access_token, operation.ended = None, True
        return await self.engine.run(sent, operation)

    async def _headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(SECURITY_HEADERS)
        response.headers["x-mandate-instance"] = self.instance
        response.headers.setdefault("x-request-id", ids.new(ids.Kind.REQUEST))
        origin = request.headers.get("origin")
        if origin is not None and origin in self.sessions.cors_origins:
            response.headers["access-control-allow-origin"] = origin
            response.headers["access-control-allow-credentials"] = "true"
            response.headers["access-control-expose-headers"] = "x-request-id"
            response.headers["cross-origin-resource-policy"] = "cross-origin"
        if self.sessions.cors_origins:
            response.headers.add("vary", "Origin")


async def health(_request: web.Request) -> web.Response:
    """Say that this process runs."""
    return _json({"status": "ok"}, 200)


async def version_(_request: web.Request) -> web.Response:
    """Say which version runs."""
    return _json({"service": "edge", "version": version("mandate")}, 200)


async def scrape(_request: web.Request) -> web.Response:
    """Return metrics in the Prometheus text format."""
    return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")


def _add_health(app: web.Application, edge: Edge) -> None:
    app.router.add_get("/health", health)
    app.router.add_get("/health/ready", edge.ready)
    app.router.add_get("/version", version_)
    app.router.add_get("/metrics", scrape)


@web.middleware
async def _told(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer what was raised as JSON; of a bug only the request id is told."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        problem = {"message": refused.reason, "extensions": {"code": refused.reason.upper().replace(" ", "_")}}
        headers = {"allow": refused.headers["allow"]} if "allow" in refused.headers else None
        return _json({"errors": [problem]}, refused.status, headers)
    except Exception as bug:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
        request_id = ids.new(ids.Kind.REQUEST)
        log.error("http.bug", bug, path=request.path, request_id=request_id)
        problem = {"message": f"something broke; it is logged under {request_id}", "extensions": {"code": "INTERNAL"}}
        return _json({"errors": [problem]}, 500)


async def _read(request: web.Request) -> Request:
    """Read a GraphQL request; ValueError says what is wrong with it, HTTPException that it is none."""
    if request.content_type != JSON:
        raise web.HTTPUnsupportedMediaType
    try:
        body = await request.read()
    except web.RequestPayloadError:
        message = "the body is not what its headers say"
        raise ValueError(message) from None
    try:
        sent: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = "the body is not JSON"
        raise ValueError(message) from None
    if not isinstance(sent, dict):
        message = "the body must be one JSON object; batches are not served"
        raise ValueError(message)  # noqa: TRY004  # what a client sent is a value here
    members: dict[str, Any] = sent
    query = members.get("query")
    if not isinstance(query, str) or not query.strip():
        message = "query must be the text of a document"
        raise ValueError(message)
    name = _optional(members, "operationName", str)
    _optional(members, "extensions", dict)
    variables: Mapping[str, object] = _optional(members, "variables", dict) or {}
    return Request(query, name, variables)


def _optional(members: Mapping[str, Any], name: str, kind: type) -> Any:
    value = members.get(name)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be {'an object' if kind is dict else 'text'}")
    return value


def _media(accept: str) -> str | None:
    """Choose the media type of the answer (GraphQL over HTTP); None when the client takes neither."""
    weights: dict[str, float] = {}
    for part in accept.split(",")[:20]:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
    anything = max(weights.get("*/*", 0.0), weights.get("application/*", 0.0))
    plain, precise = weights.get(JSON, anything), weights.get(GRAPHQL_JSON, 0.0)
    if precise > 0 and precise >= plain:
        return GRAPHQL_JSON
    return JSON if plain > 0 else None


async def _serves(stubs: Stubs, service: str) -> bool:
    health_of: Any = health_pb2_grpc.HealthStub(stubs.channels[service])
    try:
        answer = await client.call(health_of.Check, health_pb2.HealthCheckRequest(), timeout_ms=HEALTH_MS_MAX)
    except MeshError:
        return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def _json(body: object, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type=JSON, headers=headers)
