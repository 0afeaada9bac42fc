"""What a document may ask for, found out before it is validated, for validation itself is quadratic.

The walk expands fragments as execution does, each once for a level, and stops at the first limit that is passed, so its
own work has a maximum too. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    VariableNode,
)

DEFINITIONS_MAX = 50
SELECTED_MAX = 1_000
DEPTH_MAX = 10
INTROSPECTION_DEPTH_MAX = 16  # the usual introspection query follows ofType nine times
ALIASES_MAX = 30
DIRECTIVES_MAX = 20
REPEATS_MAX = 20
PAIRS_MAX = 600  # of fields under one name, each of which validation compares: about 10 µs a pair
POINTS_MAX = 5_000
FIRST_MAX = 10**6  # above every page, so that reckoning with it stays cheap
CALL_POINTS = 10
INTROSPECTION = frozenset({"__schema", "__type"})

_Visit = Callable[[SelectionNode], None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A document that asks for too much."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Weights:
    """What the schema's fields cost: the points of those that call services, and the default size of each list."""

    calls: Mapping[str, int]
    sizes: Mapping[str, int]


class _TooMuch(Exception):
    def __init__(self, code: str, limit: int, what: str) -> None:
        super().__init__(f"the document has more than {limit} {what}")
        self.code = code


@dataclass(slots=True)
class _Walk:
    fragments: Mapping[str, FragmentDefinitionNode]
    selected: int = 0
    aliases: int = 0
    directives: int = 0
    pairs: int = 0
    introspects: bool = False

    def level(self, sets: Sequence[SelectionSetNode], depth: int, depth_max: int) -> None:
        """Visit everything that merges into one object of the answer."""
        if depth > depth_max:
            raise _TooMuch("DOCUMENT_TOO_DEEP", depth_max, "levels")
        for name, fields in _collected(sets, self.fragments, self._visit).items():
            self._repeats(len(fields))
            found = fields[0].name.value
            self.introspects = self.introspects or found in INTROSPECTION
            deepest = INTROSPECTION_DEPTH_MAX if depth == 1 and name == found and found in INTROSPECTION else depth_max
            below = [node.selection_set for node in fields if node.selection_set is not None]
            if below:
                self.level(below, depth + 1, deepest)

    def _visit(self, node: SelectionNode) -> None:
        self.selected += 1
        self.directives += len(node.directives or ())
        if isinstance(node, FieldNode) and node.alias is not None:
            self.aliases += 1
        if self.selected > SELECTED_MAX:
            raise _TooMuch("DOCUMENT_TOO_LARGE", SELECTED_MAX, "selections")
        if self.aliases > ALIASES_MAX:
            raise _TooMuch("TOO_MANY_ALIASES", ALIASES_MAX, "aliases")
        if self.directives > DIRECTIVES_MAX:
            raise _TooMuch("TOO_MANY_DIRECTIVES", DIRECTIVES_MAX, "directives")

    def _repeats(self, count: int) -> None:
        self.pairs += count * (count - 1) // 2
        if count > REPEATS_MAX:
            raise _TooMuch("TOO_MANY_REPEATS", REPEATS_MAX, "selections of one name at one place")
        if self.pairs > PAIRS_MAX:
            raise _TooMuch("TOO_MANY_REPEATS", PAIRS_MAX, "pairs of selections of one name")


def check(document: DocumentNode) -> Refused | bool:
    """Return whether the document introspects, or why it is refused."""
    if len(document.definitions) > DEFINITIONS_MAX:
        return Refused("DOCUMENT_TOO_LARGE", f"the document has more than {DEFINITIONS_MAX} operations and fragments")
    walk = _Walk(fragments_of(document))
    try:
        for definition in document.definitions:
            # Fragments that no operation uses are validated too.
            if isinstance(definition, OperationDefinitionNode | FragmentDefinitionNode):
                walk.directives += len(definition.directives or ())
                walk.level([definition.selection_set], 1, _depth_max(definition))
    except _TooMuch as refusal:
        return Refused(refusal.code, str(refusal))
    except RecursionError:
        return Refused("DOCUMENT_TOO_DEEP", "the document nests too deeply")
    return walk.introspects


def _depth_max(definition: OperationDefinitionNode | FragmentDefinitionNode) -> int:
    describes = isinstance(definition, FragmentDefinitionNode) and definition.type_condition.name.value.startswith("__")
    return INTROSPECTION_DEPTH_MAX if describes else DEPTH_MAX


@dataclass(frozen=True, slots=True)
class Cost:
    """How the points of one operation are reckoned: rows that it may return, and 10 or more for each call."""

    fragments: Mapping[str, FragmentDefinitionNode]
    weights: Weights
    variables: Mapping[str, object] = field(default_factory=dict[str, object])

    def points(self, sets: Sequence[SelectionSetNode]) -> int:
        """Reckon what selection sets that merge cost together; call it for checked documents only."""
        total = 0
        for fields in _collected(sets, self.fragments, lambda _node: None).values():
            name = fields[0].name.value
            below = self.points([node.selection_set for node in fields if node.selection_set is not None])
            total += self.weights.calls.get(name, 0)
            total += max(self._rows(node) for node in fields) * (below + 1) if below or fields[0].selection_set else 0
        return total

    def _rows(self, node: FieldNode) -> int:
        rows = self.weights.sizes.get(node.name.value, 1)
        for argument in node.arguments or ():
            if argument.name.value != "first":
                continue
            value: object = None
            if isinstance(argument.value, VariableNode):
                value = self.variables.get(argument.value.name.value)
            elif isinstance(argument.value, IntValueNode):
                value = int(argument.value.value[:10])
            if isinstance(value, int | float):  # JSON's 100.0 is an Int too
                rows = int(max(1, min(value, FIRST_MAX)))
        return rows


def defaults_of(operation: OperationDefinitionNode) -> dict[str, object]:
    """Return the numbers that variables have where a request gives none."""
    return {
        definition.variable.name.value: int(definition.default_value.value[:10])
        for definition in operation.variable_definitions or ()
        if isinstance(definition.default_value, IntValueNode)
    }


def fragments_of(document: DocumentNode) -> dict[str, FragmentDefinitionNode]:
    """Return a document's fragments by name."""
    return {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}


def _collected(
    sets: Sequence[SelectionSetNode], fragments: Mapping[str, FragmentDefinitionNode], visit: _Visit
) -> dict[str, list[FieldNode]]:
    """Group the fields of merging selection sets by their name in the answer (CollectFields of the specification)."""
    grouped: dict[str, list[FieldNode]] = {}
    for node in _flat(sets, fragments, visit):
        grouped.setdefault(node.alias.value if node.alias else node.name.value, []).append(node)
    return grouped


def _flat(
    sets: Sequence[SelectionSetNode], fragments: Mapping[str, FragmentDefinitionNode], visit: _Visit
) -> Iterator[FieldNode]:
    seen: set[str] = set()
    waiting = list(sets)
    while waiting:
        for node in waiting.pop().selections:
            visit(node)
            if isinstance(node, FieldNode):
                yield node
            elif isinstance(node, InlineFragmentNode):
                waiting.append(node.selection_set)
            elif isinstance(node, FragmentSpreadNode):
                name = node.name.value
                if name in fragments and name not in seen:
                    seen.add(name)
                    waiting.append(fragments[name].selection_set)
