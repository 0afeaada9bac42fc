"""The HTTP server of the gateway: its routes, the socket it accepts on, and how it drains."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from gateway_svc.dialects import Dialect
from gateway_svc.http.answers import Response
from gateway_svc.http.completions import Endpoint
from gateway_svc.http.connections import Connections
from gateway_svc.http.descriptors import connections_within
from gateway_svc.http.draining import Draining
from gateway_svc.http.errors import INSTANCE_HEADER, Voice, answer_to, cut_off, raw
from gateway_svc.http.health import Health
from gateway_svc.http.models import Models
from gateway_svc.http.requests import MET_EXPECTATION, Request
from gateway_svc.http.routes import Handler, Routes
from mesh import sockets
from mesh.accepting import Acceptor
from mesh.errors import InvalidArgument, MeshError
from mesh.settings import Runtime
from mesh.sockets import Claim
from mesh.telemetry import logs

BROKEN_OFF_SECONDS = 0.5  # for what the drain time did not suffice for to settle on what it has
PREFIXES = ("", "/gateway")  # the vendors' own paths, and the same below ours
POSTED = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
    "/v1/embeddings": Dialect.EMBEDDINGS,
}

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the routes lead to."""

    completions: Endpoint
    models: Models
    health: Health


class Application:
    """Answers requests by the routes."""

    def __init__(self, endpoints: Endpoints, *, instance: str, body_bytes_max: int) -> None:
        self.body_bytes_max = body_bytes_max
        self.draining = Draining()
        self.routes = _routes(endpoints)
        self._instance = instance

    async def answer(self, request: Request) -> Response | None:
        """Answer one request, whatever fails; None where the answer has gone out already."""
        self.draining.enter()
        try:
            answer = await self._handler(request)(request)
        except Exception as error:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
            if request.begun:
                cut_off(request, error)
                return None
            answer = answer_to(request, error)
        finally:
            self.draining.leave()
        if isinstance(answer, Response):
            return self._tagged(request, answer)
        if not answer.ended:  # so that it does not pass for whole
            request.line.abort()
        return None

    def failed(self, request: Request, error: Exception) -> Response:
        """Return what is told where an answer can't be sent."""
        return self._tagged(request, answer_to(request, error))

    def raw(self, error: MeshError, framing: str) -> bytes:
        """Return an error as the bytes of a last answer, for a connection of which no request was read."""
        return raw(error, self._instance, framing)

    def _handler(self, request: Request) -> Handler:
        if request.expects() not in {"", MET_EXPECTATION}:
            request.keeps = False
            raise InvalidArgument("EXPECTATION_FAILED", "of all expectations only 100-continue is met")
        return self.routes.of(request)

    def _tagged(self, request: Request, response: Response) -> Response:
        """Give an answer its request's id, and say which gateway it is from."""
        response.headers.update(Voice.of(request).headers)
        response.headers[INSTANCE_HEADER] = self._instance
        return response


def _routes(endpoints: Endpoints) -> Routes:
    routes = Routes()
    for prefix in PREFIXES:
        for path, dialect in POSTED.items():
            routes.add("POST", f"{prefix}{path}", endpoints.completions.create(dialect))
        routes.add("POST", f"{prefix}/v1/messages/count_tokens", endpoints.completions.count)
        routes.add("GET", f"{prefix}/v1/models", endpoints.models.list)
        routes.add("GET", f"{prefix}/v1/models/{{model}}", endpoints.models.get)
    routes.add("GET", "/health", endpoints.health.live)
    routes.add("GET", "/health/ready", endpoints.health.ready)
    routes.add("GET", "/version", endpoints.health.version)
    routes.add("GET", "/metrics", endpoints.health.metrics)
    return routes


class HttpServer:
    """Accepts on the socket that the supervisor handed over, else on one of its own."""

    def __init__(self, app: Application, runtime: Runtime, *, connections_max: int) -> None:
        self._app = app
        self._runtime = runtime
        self._connections_max = connections_max
        self._drained = asyncio.Event()
        self._connections: Connections | None = None
        self._acceptor: Acceptor | None = None

    async def run(self) -> None:
        """Serve until drained."""
        await self.start()
        await self._drained.wait()

    async def start(self) -> None:
        """Begin to accept."""
        made = self._connections = Connections(self._app, connections_within(self._connections_max))
        runtime = self._runtime
        if runtime.http_fd is not None:
            listener = socket.socket(fileno=runtime.http_fd)
        else:
            listener = sockets.listen(Claim(runtime.host, runtime.gateway_port, "gateway HTTP, MANDATE_GATEWAY_PORT"))
        self._acceptor = Acceptor(listener, made)
        self._acceptor.start()
        log.event("http.ready", port=runtime.gateway_port)

    async def drain(self) -> None:
        """Accept no more and wait for open completions, at most the drain time."""
        if self._acceptor is not None:
            self._acceptor.stop()
        await self._app.draining.quiet(self._runtime.drain_seconds)
        if self._connections is not None:
            await self._connections.close(BROKEN_OFF_SECONDS)
        self._drained.set()
