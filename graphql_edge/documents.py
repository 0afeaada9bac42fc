"""Documents as they arrive: parsed, guarded and validated once, then remembered by their text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    parse,
    validate,
)

from graphql_edge import guards
from graphql_edge.guards import Refused, Weights
from graphql_edge.schema.fields import CALL_POINTS_KEY

BYTES_MAX = 16_384
TOKENS_MAX = 1_000
ERRORS_MAX = 10
REMEMBERED_MAX = 256
PUBLIC = frozenset({"signUp", "logIn"})


@dataclass(frozen=True, slots=True)
class Invalid:
    """A document that is no GraphQL, or not of this schema."""

    errors: tuple[GraphQLError, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A document that may be executed."""

    document: DocumentNode
    introspects: bool

    def operation(self, name: str | None) -> OperationDefinitionNode | None:
        """Return the operation to execute, None when the name does not say which."""
        found = [node for node in self.document.definitions if isinstance(node, OperationDefinitionNode)]
        if name is None:
            return found[0] if len(found) == 1 else None
        return next((node for node in found if node.name is not None and node.name.value == name), None)


class Documents:
    """The documents of one schema; the 256 used last are remembered."""

    def __init__(self, schema: GraphQLSchema, *, hide_suggestions: bool) -> None:
        self.schema = schema
        self._hide_suggestions = hide_suggestions
        self._weights = weights_of(schema)
        self._known: OrderedDict[str, Accepted] = OrderedDict()

    @property
    def remembered(self) -> int:
        """Return how many documents are remembered."""
        return len(self._known)

    def admit(self, text: str) -> Accepted | Invalid | Refused:
        """Parse, guard and validate a document."""
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return known
        found = self._read(text)
        if isinstance(found, Accepted):
            self._known[text] = found
            if len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        return found

    def points(self, accepted: Accepted, operation: OperationDefinitionNode, variables: Mapping[str, object]) -> int:
        """Reckon what an operation costs with these variables."""
        given = {**guards.defaults_of(operation), **variables}
        cost = guards.Cost(guards.fragments_of(accepted.document), self._weights, given)
        return cost.points([operation.selection_set])

    def _read(self, text: str) -> Accepted | Invalid | Refused:
        if len(text.encode()) > BYTES_MAX:
            return Refused("DOCUMENT_TOO_LARGE", f"the document has more than {BYTES_MAX} bytes")
        try:
            document = parse(text, max_tokens=TOKENS_MAX, no_location=False)
        except GraphQLError as error:
            return Invalid((error,))
        except RecursionError:
            return Refused("DOCUMENT_TOO_DEEP", "the document nests too deeply")
        introspects = guards.check(document)
        if isinstance(introspects, Refused):
            return introspects
        errors = validate(self.schema, document, max_errors=ERRORS_MAX, hide_suggestions=self._hide_suggestions)
        return Invalid(tuple(errors)) if errors else Accepted(document, introspects)


def weights_of(schema: GraphQLSchema) -> Weights:
    """Read from a schema which fields call services and how long its lists are unless a query says so."""
    calls: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLObjectType) and not kind.name.startswith("__"):
            for name, described in kind.fields.items():
                if points := _call_points(described):
                    calls[name] = max(points, calls.get(name, 0))
                if "first" in described.args:
                    sizes[name] = int(described.args["first"].default_value)
    return Weights(calls, sizes)


def is_public(operation: OperationDefinitionNode) -> bool:
    """Return whether an operation does nothing but begin a session, for which nobody need be logged in."""
    fields = operation.selection_set.selections
    return operation.operation is OperationType.MUTATION and all(
        isinstance(node, FieldNode) and node.name.value in PUBLIC for node in fields
    )


def _call_points(described: GraphQLField) -> int:
    definition = (described.extensions or {}).get("strawberry-definition")
    if definition is None or definition.is_basic_field:
        return 0
    return definition.metadata.get(CALL_POINTS_KEY, guards.CALL_POINTS)
