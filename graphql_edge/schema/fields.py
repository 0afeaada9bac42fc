"""How fields are declared: described by their docstrings, mutations with refusals told in their payload."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import REFUSALS, Payload, user_error
from mesh import ids
from mesh.errors import Code, MeshError

Info = strawberry.Info[Operation, None]
Resolver = Callable[..., Any]

CALL_POINTS_KEY = "call_points"  # in a field's metadata: what its calls cost, where that is not the usual


@strawberry.input
class Keyed:
    """What every mutation takes."""

    idempotency_key: str | None = strawberry.field(
        default=None, description="Repeats with the same key change nothing more; one is made up when absent."
    )


@strawberry.input
class KeyRequired:
    """What a mutation takes that nobody wants done twice."""

    idempotency_key: str = strawberry.field(description="Repeats with the same key change nothing more.")


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
            nullable: Any = info.return_type
            payload: type[Payload] = nullable.of_type
            return payload(user_errors=[user_error(error, kwargs.get("input"))])


def field(resolver: Resolver) -> Any:
    """Declare a field that is resolved by calls to services."""
    return strawberry.field(resolver=resolver, description=inspect.getdoc(resolver))


def costly(points: int) -> Callable[[Resolver], Any]:
    """Declare a field whose calls cost more than is usual."""

    def declare(resolver: Resolver) -> Any:
        return strawberry.field(
            resolver=resolver, description=inspect.getdoc(resolver), metadata={CALL_POINTS_KEY: points}
        )

    return declare


def mutation(resolver: Resolver) -> Any:
    """Declare a mutation that tells refusals in its payload."""
    return refusable()(resolver)


def refusable(also: frozenset[Code] = frozenset()) -> Callable[[Resolver], Any]:
    """Declare a mutation that tells more kinds of failure in its payload than is usual."""

    def declare(resolver: Resolver) -> Any:
        told: list[FieldExtension] = [Refusable(REFUSALS | also)]
        return strawberry.mutation(resolver=resolver, description=inspect.getdoc(resolver), extensions=told)

    return declare


def key_of(given: Keyed | KeyRequired) -> str:
    """Return the idempotency key of a mutation, made here where the client gave none."""
    return given.idempotency_key or ids.new(ids.Kind.REQUEST)
