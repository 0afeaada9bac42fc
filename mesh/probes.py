"""Ask a service of the mesh whether it is ready, as the supervisor does; what readiness means is the service's word."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

TIMEOUT_SECONDS = 2.0
PEER = "operator"  # the certificate that asks
NAME = ("grpc.ssl_target_name_override", "localhost")  # stands in every certificate, whatever address is asked


def grpc_health(tls: Path, host: str, port: int) -> Callable[[], Awaitable[bool]]:
    """Return a probe by the gRPC health protocol over mTLS."""

    async def probe() -> bool:
        credentials = grpc.ssl_channel_credentials(
            (tls / "ca.pem").read_bytes(), (tls / f"{PEER}.key").read_bytes(), (tls / f"{PEER}.pem").read_bytes()
        )
        async with grpc.aio.secure_channel(f"{host}:{port}", credentials, options=[NAME]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

    return probe


def http_ready(host: str, port: int) -> Callable[[], Awaitable[bool]]:
    """Return a probe by `GET /health/ready`."""
    request = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"

    async def probe() -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(request)
                    return (await reader.readline()).split(b" ")[1:2] == [b"200"]
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return False

    return probe
