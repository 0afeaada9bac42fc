"""Ask a service of the mesh whether it is ready, as the supervisor does; what readiness means is the service's word."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from mesh.tls import Certificates

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TIMEOUT_SECONDS = 2.0
NAME = ("grpc.ssl_target_name_override", "localhost")  # stands in every certificate, whatever address is asked


def grpc_health(certificates: Certificates, host: str, port: int) -> Callable[[], Awaitable[bool]]:
    """Return a probe by the gRPC health protocol over mTLS."""

    async def probe() -> bool:
        async with grpc.aio.secure_channel(f"{host}:{port}", certificates.client(), options=[NAME]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
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
