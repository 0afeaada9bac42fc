"""Each call is counted, timed and, where traces are on, a span that continues the client's."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mesh.chain import Call
from mesh.telemetry import metrics, traces


@asynccontextmanager
async def step(call: Call) -> AsyncGenerator[None]:
    """Measure the call from its first step to its last."""
    started = time.perf_counter()
    with traces.serving(call.method, call.metadata("traceparent")) as span:
        try:
            yield
        finally:
            code = call.code.name if call.code is not None else "OK"
            span.set("rpc.grpc.status", code)
            metrics.RPC_HANDLED.labels(call.method, code).inc()
            if not call.streaming:
                metrics.RPC_SECONDS.labels(call.method).observe(time.perf_counter() - started)
