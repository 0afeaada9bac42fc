"""One operation from document to answer: guards, login, execution, and what callers are told of failures."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from graphql import ExecutionResult, GraphQLError, OperationDefinitionNode, execute

from graphql_edge import guards
from graphql_edge.documents import Accepted, Documents, Invalid, is_public
from graphql_edge.guards import Refused
from graphql_edge.operation import Operation, is_retryable
from graphql_edge.projection import PlannedExecutor
from graphql_edge.schema.errors import named
from mesh import deadline
from mesh.errors import Code, DeadlineExceeded, MeshError
from mesh.telemetry import logs

GRACE_MS = 100  # after the deadline of the calls, which bound themselves, before the operation is cut
STATUS = {Code.UNAUTHENTICATED: 401, Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504}

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    query: str
    operation_name: str | None
    variables: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told; `well_formed` refusals are 200 for those who know no other media type than JSON."""

    status: int
    body: Mapping[str, object]
    well_formed: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """Executes operations against one schema."""

    documents: Documents
    operation_ms: int
    introspection: bool

    async def run(self, request: Request, operation: Operation) -> Answer:
        """Answer one request; nothing that it raises is left to the caller."""
        admitted = self.documents.admit(request.query)
        match admitted:
            case Refused(code, message):
                return refusal(400, code, message, operation)
            case Invalid(errors):
                return Answer(400, {"errors": [_told(error, operation) for error in errors]}, well_formed=True)
            case Accepted():
                return await self._select(admitted, request, operation)
            case _:
                assert_never(admitted)

    async def _select(self, admitted: Accepted, request: Request, operation: Operation) -> Answer:
        selected = admitted.operation(request.operation_name)
        if selected is None:
            return refusal(400, "UNKNOWN_OPERATION", "operationName must name one operation of the document", operation)
        if operation.forged and not is_public(selected):
            return refusal(403, "CSRF_REFUSED", operation.forged, operation)
        points = self.documents.points(admitted, selected, request.variables)
        if points > guards.POINTS_MAX:
            message = f"the operation may cost {points} points, {guards.POINTS_MAX} at most"
            return refusal(400, "OPERATION_TOO_COSTLY", message, operation)
        try:
            with deadline.within(self.operation_ms):
                async with asyncio.timeout((self.operation_ms + GRACE_MS) / 1000):
                    return await self._run(admitted, selected, request, operation, points)
        except TimeoutError:
            return failure(DeadlineExceeded("DEADLINE_EXCEEDED", "the operation took longer than it may"), operation)

    async def _run(
        self,
        admitted: Accepted,
        selected: OperationDefinitionNode,
        request: Request,
        operation: Operation,
        points: int,
    ) -> Answer:
        try:
            await operation.authenticate()
        except MeshError as error:
            return failure(error, operation)
        if admitted.introspects and not self.introspection and operation.who.person is None:
            return refusal(400, "INTROSPECTION_OFF", "log in to read the schema", operation)
        result = execute(
            self.documents.schema,
            admitted.document,
            context_value=operation,
            variable_values=dict(request.variables),
            operation_name=selected.name.value if selected.name else None,
            executor_class=PlannedExecutor,
        )
        if inspect.isawaitable(result):
            result = await result
        return _answer(result, operation, points)


def refusal(status: int, code: str, message: str, operation: Operation) -> Answer:
    """Answer a request that is not executed."""
    extensions = {"code": code, "requestId": operation.request_id, "retryable": False}
    return Answer(status, {"errors": [{"message": message, "extensions": extensions}]})


def failure(error: MeshError, operation: Operation) -> Answer:
    """Answer a request that failed as a whole, before any of it was executed."""
    told = {"message": error.message, "extensions": _extensions(error, operation)}
    return Answer(STATUS.get(error.code, 500), {"errors": [told]})


def _answer(result: ExecutionResult, operation: Operation, points: int) -> Answer:
    body: dict[str, object] = {"data": result.data}
    errors = result.errors or []
    if errors:
        body["errors"] = [_told(error, operation) for error in errors]
    if result.data is None and errors and all(error.path is None for error in errors):  # the variables don't fit
        return Answer(400, {"errors": body["errors"]}, well_formed=True)
    cost = {"points": points, "pointsMax": guards.POINTS_MAX, "calls": operation.calls}
    body["extensions"] = {"requestId": operation.request_id, "cost": cost}
    return Answer(200, body)


def _told(error: GraphQLError, operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {"message": error.message}
    if error.locations:
        told["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path is not None:
        told["path"] = list(error.path)
    cause = error.original_error
    if isinstance(cause, MeshError):
        told["extensions"] = _extensions(cause, operation)
        return told
    code = "BAD_REQUEST"
    if cause is not None and not isinstance(cause, GraphQLError):  # a scalar's own word on a bad value is no bug
        log.error("graphql.bug", cause, request_id=operation.request_id, path=told.get("path"))
        code, told["message"] = "INTERNAL", f"something broke; it is logged under {operation.request_id}"
    told["extensions"] = {"code": code, "requestId": operation.request_id, "retryable": False}
    return told


def _extensions(error: MeshError, operation: Operation) -> dict[str, object]:
    found: dict[str, object] = {
        "code": error.reason,
        "service": error.details.get("service", "edge"),
        "retryable": is_retryable(error),
        "requestId": operation.request_id,
    }
    if error.retry_after_ms is not None:
        found["retryAfterMs"] = error.retry_after_ms
    if field_name := error.details.get("field"):
        found["field"] = named(field_name)
    return found
