"""OpenTelemetry spans across the whole path, when a collector is set; else nothing, at no cost.

The SDK is imported only when traces are on.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_tracer: Any = None


class Span:
    """A span that may not be there."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, key: str, value: str | int) -> None:
        """Attach an attribute; never a secret, never a prompt."""
        if self._span is not None:
            self._span.set_attribute(key, value)

    @property
    def raw(self) -> Any:
        """Return the SDK's own span."""
        return self._span

    def end(self) -> None:
        """Close a span that was opened without a block."""
        if self._span is not None:
            self._span.end()


NO_SPAN = Span()


def configure(service: str, endpoint: str, replica: int) -> None:
    """Send this process's spans to a collector (OTLP over gRPC)."""
    global _tracer  # noqa: PLW0603  # a process is one service
    if not endpoint:
        return
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({"service.name": f"mandate-{service}", "service.instance.id": str(replica)})
    provider = TracerProvider(resource=resource)
    insecure = not endpoint.startswith("https://")
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure)))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("mandate")


def stop() -> None:
    """Send what is still waiting."""
    if _tracer is not None:
        from opentelemetry import trace  # noqa: PLC0415

        provider: Any = trace.get_tracer_provider()
        provider.shutdown()


def serve(name: str, traceparent: str) -> Span | None:
    """Open a server span that continues the client's trace and is ended by hand; None when nothing is traced."""
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return Span(_tracer.start_span(name, context=_context(traceparent), kind=SpanKind.SERVER))


@contextmanager
def within(span: Span | None) -> Generator[None]:
    """Let what the block does be part of a span that was opened without a block."""
    if span is None or _tracer is None:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415

    with trace.use_span(span.raw, end_on_exit=False):
        yield


def _context(traceparent: str | None) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})


@contextmanager
def serving(name: str, traceparent: str | None) -> Generator[Span]:
    """Open a server span that continues the client's trace (W3C Trace Context)."""
    if _tracer is None:
        yield NO_SPAN
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with _tracer.start_as_current_span(name, context=_context(traceparent), kind=SpanKind.SERVER) as span:
        yield Span(span)


@contextmanager
def doing(name: str, **attributes: str | int) -> Generator[Span]:
    """Open a span for a piece of work or an outgoing call."""
    if _tracer is None:
        yield NO_SPAN
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with _tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
        yield Span(span)


def traceparent() -> str | None:
    """Return the header that lets the next service continue this trace."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
