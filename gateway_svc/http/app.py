"""The HTTP server of the gateway: its routes, the socket it accepts on, and how it drains."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from aiohttp import web

from gateway_svc.dialects import Dialect
from gateway_svc.http.completions import Endpoint
from gateway_svc.http.connections import Connections
from gateway_svc.http.descriptors import connections_within
from gateway_svc.http.draining import DRAINING, Draining
from gateway_svc.http.errors import identified
from gateway_svc.http.health import Health
from gateway_svc.http.models import Models
from mesh.accepting import Acceptor
from mesh.settings import Runtime
from mesh.telemetry import logs

BACKLOG = 1_024
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


def application(endpoints: Endpoints, *, instance: str, body_bytes_max: int) -> web.Application:
    """Build the routes."""
    app = web.Application(middlewares=[identified(instance)], client_max_size=body_bytes_max)
    app[DRAINING] = Draining()
    for prefix in PREFIXES:
        for path, dialect in POSTED.items():
            app.router.add_post(f"{prefix}{path}", endpoints.completions.create(dialect))
        app.router.add_post(f"{prefix}/v1/messages/count_tokens", endpoints.completions.count)
        app.router.add_get(f"{prefix}/v1/models", endpoints.models.list)
        app.router.add_get(f"{prefix}/v1/models/{{model:.+}}", endpoints.models.get)
    app.router.add_get("/health", endpoints.health.live)
    app.router.add_get("/health/ready", endpoints.health.ready)
    app.router.add_get("/version", endpoints.health.version)
    app.router.add_get("/metrics", endpoints.health.metrics)
    return app


class HttpServer:
    """Accepts on the socket that the supervisor handed over, else on one of its own."""

    def __init__(self, app: web.Application, runtime: Runtime, *, instance: str, connections_max: int) -> None:
        self._app = app
        self._runtime = runtime
        self._instance = instance
        self._connections_max = connections_max
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=BROKEN_OFF_SECONDS)
        self._drained = asyncio.Event()
        self._acceptor: Acceptor | None = None
        self._listener: asyncio.Server | None = None

    async def run(self) -> None:
        """Serve until drained."""
        await self.start()
        await self._drained.wait()

    async def start(self) -> None:
        """Begin to accept."""
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101  # set up, the line before
        made = Connections(self._runner.server, self._instance, connections_within(self._connections_max))
        runtime = self._runtime
        if runtime.http_fd is not None:
            self._acceptor = Acceptor(socket.socket(fileno=runtime.http_fd), made)
            self._acceptor.start()
        else:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(made, runtime.host, runtime.gateway_port, backlog=BACKLOG)
        log.event("http.ready", port=self._runtime.gateway_port)

    async def drain(self) -> None:
        """Accept no more and wait for open completions, at most the drain time."""
        if self._acceptor is not None:
            self._acceptor.stop()
        if self._listener is not None:
            self._listener.close()
        await self._app[DRAINING].quiet(self._runtime.drain_seconds)
        await self._runner.cleanup()
        self._drained.set()
