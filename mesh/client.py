"""Calls between services: one channel a service, mTLS, a deadline on each call, retries where the contract allows."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from mesh import caller, deadline, faults
from mesh.telemetry import traces
from mesh.tls import Certificates

Request = TypeVar("Request")
Response = TypeVar("Response")

CALL_MS = 5_000
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
RETRYABLE = {MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT}
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def connect(
    service: str, address: str, certificates: Certificates, services: Iterable[ServiceDescriptor]
) -> grpc.aio.Channel:
    """Open a channel to every replica at `address` (host:port,host:port); it reconnects by itself."""
    options = [
        ("grpc.ssl_target_name_override", f"{service}.mandate.internal"),
        ("grpc.service_config", json.dumps(service_config(services))),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.secure_channel(_target(address), certificates.client(), options=options)


def service_config(services: Iterable[ServiceDescriptor]) -> dict[str, Any]:
    """Return gRPC's service config: spread over replicas, and retry what the contract says may be repeated."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if method.GetOptions().idempotency_level in RETRYABLE and not method.server_streaming
    ]
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": names, "retryPolicy": RETRY}] if names else [],
    }


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, timeout_ms: float = CALL_MS
) -> Response:
    """Make one unary call for whoever is behind the present one; failures arrive as the MeshError raised over there."""
    try:
        return await method(request, timeout=deadline.budget_ms(timeout_ms) / 1000, metadata=metadata())
    except grpc.aio.AioRpcError as failure:
        raise faults.from_rpc(failure) from None


def metadata() -> tuple[tuple[str, str], ...]:
    """Return what travels with a call: the person's mesh token and the trace."""
    pairs: list[tuple[str, str]] = []
    if (token := caller.token()) is not None:
        pairs.append(("authorization", f"Bearer {token.reveal()}"))
    if (trace := traces.traceparent()) is not None:
        pairs.append(("traceparent", trace))
    return tuple(pairs)


@asynccontextmanager
async def connected(channel: grpc.aio.Channel) -> AsyncGenerator[grpc.aio.Channel]:
    """Close the channel at the end of the block."""
    try:
        yield channel
    finally:
        await channel.close()


def _target(address: str) -> str:
    replicas = [part.strip() for part in address.split(",")]
    if len(replicas) == 1 and not replicas[0][0].isdigit():
        return f"dns:///{replicas[0]}"
    return f"ipv4:{','.join(replicas)}"
