"""Bring a service up and down: certificates, the chain, health, reflection, metrics, signals, drain."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import grpc
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]  # it ships no stubs
from grpc_reflection.v1alpha import reflection

from mesh import access, failpoints, ports, tokens
from mesh.chain import Chain
from mesh.chain import access as access_step
from mesh.chain import caller as caller_step
from mesh.chain import deadline as deadline_step
from mesh.chain import faults as faults_step
from mesh.chain import limits as limits_step
from mesh.chain import trace as trace_step
from mesh.client import MESSAGE_BYTES_MAX
from mesh.settings import Runtime, SettingsError
from mesh.sockets import PortError
from mesh.telemetry import logs, metrics, traces
from mesh.tls import Certificates

YOUNG_MAX = 10_000  # objects that no collection has seen; Python's 700 are those of twenty completions in the gateway

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """One contract and what implements it."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object

    @classmethod
    def of(cls, contract: ModuleType, stubs: ModuleType, servicer: object) -> Self:
        """Register the one service that a generated pair of modules holds."""
        (descriptor,) = contract.DESCRIPTOR.services_by_name.values()
        return cls(descriptor, getattr(stubs, f"add_{descriptor.name}Servicer_to_server"), servicer)


class Server:
    """A gRPC server of one service, with the chain around every method."""

    def __init__(
        self,
        service: str,
        runtime: Runtime,
        registrations: Sequence[Registration],
        keys: tokens.KeySource,
        resolve: access_step.ScopeResolver,
    ) -> None:
        certificates = Certificates(runtime.tls, service)
        rules = access.rules_of(registration.descriptor for registration in registrations)
        steps = (
            trace_step.step,
            faults_step.step,
            deadline_step.step,
            caller_step.step(keys, certificates.trust_domain()),
            access_step.step(resolve),
            limits_step.step(),
        )
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", 32 * 1024),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        self._server = grpc.aio.server(interceptors=[Chain(steps, rules)], options=options)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for registration in registrations:
            registration.add(registration.servicer, self._server)
        if runtime.environment == "development":
            names = [registration.descriptor.full_name for registration in registrations]
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        self._drain_seconds = runtime.drain_seconds
        self._address = f"{runtime.host}:{ports.grpc_port(service, runtime)}"
        self.port = self._server.add_secure_port(self._address, certificates.server())

    async def start(self) -> None:
        """Accept calls and say so to whoever asks for health."""
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Say that no more calls are wanted, then wait for those in flight."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._drain_seconds)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service to its end; a wrong setting or a taken port is one line on standard error and exit code 1."""
    wrong: BaseException | None = None
    try:
        uvloop.run(main)
    except* (SettingsError, PortError) as found:  # also of a loop of the service's
        wrong = found
        while isinstance(wrong, BaseExceptionGroup):
            wrong = wrong.exceptions[0]
    if wrong is not None:
        sys.stderr.write(f"{wrong}\n")
        raise SystemExit(1)


def prepare(service: str, runtime: Runtime) -> None:
    """Set up logs, traces and metrics of this process."""
    failpoints.arm(runtime)
    logs.configure(service, runtime)
    traces.configure(service, runtime.otlp_endpoint, runtime.replica)
    metrics.serve(runtime.host, ports.metrics_port(service, runtime))


async def serve(
    server: Server, workers: Iterable[Callable[[], Awaitable[None]]] = (), *, before_stop: Iterable[Any] = ()
) -> None:
    """Run a server and its loops until SIGTERM or SIGINT; a loop that dies takes the process with it."""
    stop = stop_signal()
    _collect_rarely()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_run(worker)) for worker in workers]
        await server.start()
        log.event("service.ready", port=server.port)
        await stop.wait()
        log.event("service.stopping")
        for closing in before_stop:
            await closing()
        await server.stop()
        for task in running:
            task.cancel()
    traces.stop()


def _collect_rarely() -> None:
    """Leave what was built so far out of all collections, and wait longer: they took a tenth of the gateway's time.

    What a request leaves behind is freed by counting references; cycles, as failures make them, wait a little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)


def stop_signal() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _run(worker: Callable[[], Awaitable[None]]) -> None:
    await worker()
