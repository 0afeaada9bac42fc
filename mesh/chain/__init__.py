"""What every RPC passes through, in this order: trace, faults, deadline, caller, access, limits.

A step is an async context manager around the handler, so one piece of code serves all four kinds of RPC.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from mesh.access import Rule
from mesh.errors import Code

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One RPC on its way through the chain."""

    method: str
    rule: Rule | None  # None: health and reflection, which any certified peer may call
    context: Context
    request: Any  # None where requests stream
    streaming: bool
    code: Code | None = None  # set by faults when the call failed

    def metadata(self, key: str) -> str | None:
        """Return one text value that the client sent."""
        for name, value in self.context.invocation_metadata() or ():
            if name == key and isinstance(value, str):
                return value
        return None


Step = Callable[[Call], AbstractAsyncContextManager[None]]


class Chain(grpc.aio.ServerInterceptor):
    """Puts the steps around every handler of a server."""

    def __init__(self, steps: Sequence[Step], rules: dict[str, Rule]) -> None:
        self._steps = tuple(steps)
        self._rules = rules

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        rule = self._rules.get(method)
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method, rule), **coders)
        if handler.unary_stream and inspect.iscoroutinefunction(handler.unary_stream):  # health writes to its context
            written = self._unary(handler.unary_stream, method, rule, streaming=True)
            return grpc.unary_stream_rpc_method_handler(written, **coders)
        if handler.unary_stream:
            stream = self._stream(handler.unary_stream, method, rule, takes_stream=False)
            return grpc.unary_stream_rpc_method_handler(stream, **coders)
        if handler.stream_stream:
            stream = self._stream(handler.stream_stream, method, rule, takes_stream=True)
            return grpc.stream_stream_rpc_method_handler(stream, **coders)
        message = f"{method}: no RPC of the mesh streams requests alone"
        raise TypeError(message)

    def _unary(self, inner: Any, method: str, rule: Rule | None, *, streaming: bool = False) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            call = Call(method, rule, context, request, streaming=streaming)
            async with AsyncExitStack() as stack:
                for step in self._steps:
                    await stack.enter_async_context(step(call))
                return await inner(request, context)

        return guarded

    def _stream(self, inner: Any, method: str, rule: Rule | None, *, takes_stream: bool) -> Any:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            call = Call(method, rule, context, None if takes_stream else request, streaming=True)
            async with AsyncExitStack() as stack:
                for step in self._steps:
                    await stack.enter_async_context(step(call))
                # Closed here: a caller that goes away while a response is on its way must not leave the handler open.
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        yield response

        return guarded
