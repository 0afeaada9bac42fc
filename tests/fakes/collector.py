"""An OpenTelemetry collector that keeps what it is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace_id: str
    attributes: dict[str, str | int | bool]
    sent: str  # all of it, as text


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves OTLP over gRPC."""

    address: str = ""
    spans: list[Span] = field(default_factory=list)
    exported: list[bytes] = field(default_factory=list)  # all that came, as it came

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802  # the contract's name
        self.exported.append(request.SerializeToString())
        for resource in request.resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    Span(service, span.name, span.trace_id.hex(), _values(span.attributes), str(span))
                    for span in scope.spans
                ]
        return trace_service_pb2.ExportTraceServiceResponse()


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def collecting() -> AsyncGenerator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
