"""How a mutation tells what it refused: `userErrors` in its payload. Failures of queries are in `execution.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver

from graphql_edge.operation import Operation
from mesh import ids
from mesh.errors import Code, InvalidArgument, MeshError

Info = strawberry.Info[Operation, None]

REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.RESOURCE_EXHAUSTED,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
    }
)
# Where the contracts name a field otherwise than the schema does.
NAMES = {
    "request_id": "idempotencyKey",
    "target_id": "target",
    "amount_micros": "micros",
    "page_size": "first",
    "page_token": "after",
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "expire_time": "expiresAt",
}


@strawberry.type(description="Why a mutation was refused.")
class UserError:
    """One reason of a refusal; `field` is the input's field that caused it."""

    code: str
    field: str | None
    message: str


@strawberry.type
class Payload:
    """What every mutation answers; its result is absent where there are errors."""

    user_errors: list[UserError] = strawberry.field(default_factory=list[UserError])


@strawberry.input
class Keyed:
    """What every mutation takes."""

    idempotency_key: str | None = strawberry.field(
        default=None, description="Repeats with the same key change nothing more. One is made up when absent."
    )


class Refusable(FieldExtension):
    """Turn what a service refuses into the payload's userErrors; faults of the mesh stay errors of the field."""

    def __init__(self, told: frozenset[Code]) -> None:
        self._told = told

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: strawberry.Info, **kwargs: Any
    ) -> Any:
        try:
            return await next_(source, info, **kwargs)
        except MeshError as error:
            if error.code not in self._told:
                raise
            # A payload is nullable, so that one service that is down loses one field and not the whole answer.
            payload: type[Payload] = info.return_type.of_type
            return payload(user_errors=[user_error(error, kwargs.get("input"))])


def mutation(resolver: Callable[..., Any], *, told: frozenset[Code] = REFUSALS) -> Any:
    """Declare a mutation that tells refusals in its payload."""
    return strawberry.mutation(resolver=resolver, extensions=[Refusable(told)])


def user_error(error: MeshError, given: object) -> UserError:
    """Describe a refusal; its field is named as in the input `given`."""
    field = error.details.get("field")
    return UserError(code=error.reason, field=named(field, given) if field else None, message=error.message)


def named(field: str, given: object = None) -> str:
    """Return the schema's name of a contract's field; an id that the input calls `id` is called so."""
    field = field.rpartition(".")[2]
    if field in NAMES:
        return NAMES[field]
    if field.endswith("_id") and not hasattr(given, field) and hasattr(given, "id"):
        return "id"
    first, *rest = field.split("_")
    return first + "".join(part.capitalize() for part in rest)


def key_of(given: Keyed) -> str:
    """Return the idempotency key of a mutation, made here where the client gave none."""
    return given.idempotency_key or ids.new(ids.Kind.REQUEST)


def invalid(field: str, problem: str) -> InvalidArgument:
    """Build the error for an input that the schema's types let through; `field` as in the schema."""
    return InvalidArgument("INVALID_FIELD", f"{field}: {problem}", field=field)
