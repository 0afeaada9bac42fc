"""Bring the edge up and down: the public socket, and this process's own port for health and metrics."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from graphql_edge import schema, stubs
from graphql_edge.documents import Documents
from graphql_edge.execution import Engine
from graphql_edge.http import Edge
from graphql_edge.operation import SERVICE
from graphql_edge.sessions import Sessions
from graphql_edge.settings import EdgeSettings
from graphql_edge.stubs import Stubs
from mesh import ports, sockets
from mesh.server import stop_signal
from mesh.settings import Runtime
from mesh.sockets import Claim
from mesh.telemetry import logs, traces
from mesh.tls import Certificates

log = logs.get(__name__)


def build(runtime: Runtime, settings: EdgeSettings, over: Stubs) -> Edge:
    """Build the edge over open stubs."""
    development = runtime.environment == "development"
    documents = Documents(schema.build(), hide_suggestions=not development)
    engine = Engine(documents, settings.operation_ms, introspection=development)
    sessions = Sessions(str(runtime.edge_port), settings.secure_cookies, settings.cors_origins)
    return Edge(engine, over, sessions, f"{SERVICE}-{runtime.replica}")


@asynccontextmanager
async def listening(app: web.Application, accepting: socket.socket, drain_seconds: int) -> AsyncGenerator[None]:
    """Accept on a socket inside the block; at its end wait for requests in flight."""
    runner = web.AppRunner(app, access_log=None, logger=logs.http(), shutdown_timeout=drain_seconds)
    await runner.setup()
    try:
        await web.SockSite(runner, accepting, backlog=sockets.BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


async def run(runtime: Runtime, settings: EdgeSettings) -> None:
    """Serve until a signal."""
    logs.configure(SERVICE, runtime)
    traces.configure(SERVICE, runtime.otlp_endpoint, runtime.replica)
    stop = stop_signal()
    public = _public_socket(runtime)
    own = sockets.listen(Claim(runtime.host, ports.metrics_port(SERVICE, runtime), "metrics of the edge"))
    async with stubs.connect(stubs.addresses(runtime), Certificates(runtime.tls, SERVICE)) as over:
        edge = build(runtime, settings, over)
        async with (
            listening(edge.inner_app(), own, drain_seconds=1),
            listening(edge.app(), public, runtime.drain_seconds),
        ):
            log.event("service.ready", port=public.getsockname()[1])
            await stop.wait()
            log.event("service.stopping")
    traces.stop()


def _public_socket(runtime: Runtime) -> socket.socket:
    """Return the socket that was inherited, else one of our own."""
    if runtime.http_fd is not None:
        return socket.socket(fileno=runtime.http_fd)
    return sockets.listen(Claim(runtime.host, runtime.edge_port, "edge HTTP, MANDATE_EDGE_PORT"))
