"""OpenTelemetry spans across the whole path, when a collector is set; else nothing, at no cost.

The SDK is imported only when traces are on.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar, final

from mesh.errors import MeshError

Entered = TypeVar("Entered")

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

    def tell(self, attributes: Mapping[str, str | int]) -> None:
        """Attach attributes; never a secret, never a prompt."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def failed(self, error_type: str) -> None:
        """Mark it as failed; the kind of a failure is all that is told of it, since its text may quote a request."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415

            self._span.set_attribute(ERROR_TYPE, error_type)
            self._span.set_status(StatusCode.ERROR)

    @property
    def raw(self) -> Any:
        """Return the SDK's own span."""
        return self._span

    def end(self) -> None:
        """Close a span that was opened without a block."""
        if self._span is not None:
            self._span.end()


NO_SPAN = Span()
ERROR_TYPE = "error.type"


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

    with trace.use_span(span.raw, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        yield


def enabled() -> bool:
    """Return whether traces are on."""
    return _tracer is not None


def current() -> Span | None:
    """Return the span that is open here; None when nothing is traced."""
    if _tracer is None:
        return None
    from opentelemetry import trace  # noqa: PLC0415

    return Span(trace.get_current_span())


def asking(name: str, attributes: Mapping[str, str | int]) -> Span | None:
    """Open a client span that is ended by hand, under the one that is open here; None when nothing is traced."""
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return Span(_tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))


@final
class Within(Generic[Entered]):
    """A block whose beginning alone is part of a span: what is done inside it is the caller's own."""

    __slots__ = ("_block", "_span")

    def __init__(self, block: AbstractAsyncContextManager[Entered], span: Span) -> None:
        self._block = block
        self._span = span

    async def __aenter__(self) -> Entered:
        with within(self._span):
            return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)


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

    span = _tracer.start_span(name, context=_context(traceparent), kind=SpanKind.SERVER)
    with _current(span) as opened:
        yield opened


@contextmanager
def doing(name: str, **attributes: str | int) -> Generator[Span]:
    """Open a span for a piece of work or an outgoing call."""
    if _tracer is None:
        yield NO_SPAN
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with _current(_tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)) as opened:
        yield opened


@contextmanager
def _current(span: Any) -> Generator[Span]:
    """Let a span be the one that is open, end it, and tell the kind of what was raised."""
    from opentelemetry import trace  # noqa: PLC0415

    opened = Span(span)
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield opened
        except BaseException as error:
            opened.failed(kind_of(error))
            raise


def kind_of(error: BaseException) -> str:
    """Return what a span or a metric tells of an error."""
    return error.reason.lower() if isinstance(error, MeshError) else type(error).__name__


def traceparent() -> str | None:
    """Return the header that lets the next service continue this trace."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
