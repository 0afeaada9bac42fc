from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
import strawberry
from graphql import ExecutionResult, GraphQLSchema, execute, parse, validate
from hypothesis import given, settings
from hypothesis import strategies as st
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from graphql_edge.projection import PlannedExecutor
from graphql_edge.schema.scalars import INT64, MICROS, Int64, Micros


@strawberry.enum
class Colour(Enum):
    RED = 1
    BLUE = 2


@strawberry.type
class Child:
    name: str


@strawberry.type
class Row:
    id: strawberry.ID
    text: str
    maybe: str | None
    count: int
    maybe_count: int | None
    flag: bool
    money: Micros
    big: Int64 | None
    time: datetime
    maybe_time: datetime | None
    colour: Colour
    weight: float
    tags: list[str]
    child: Child

    @strawberry.field
    def doubled(self) -> int:
        return self.count * 2


@strawberry.type
class Other:
    text: str


@strawberry.type
class Query:
    rows: list[Row]
    maybe_rows: list[Row | None]


PLAIN = ("id", "text", "maybe", "count", "maybeCount", "flag", "money", "big", "time", "maybeTime", "colour", "weight")
FIELDS = (*PLAIN, "tags", "child { name }", "doubled", "__typename")
NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
ROW = Row(
    id=strawberry.ID("r"),
    text="a",
    maybe=None,
    count=1,
    maybe_count=None,
    flag=True,
    money=Micros(5),
    big=None,
    time=NOW,
    maybe_time=NOW,
    colour=Colour.RED,
    weight=0.5,
    tags=["x"],
    child=Child(name="c"),
)
ODD: tuple[Any, ...] = (None, "", "text", 0, 1, True, 2**31, -(2**31) - 1, 1.0, 1.5, NOW, Colour.BLUE, [], object, b"x")


def graphql_schema() -> GraphQLSchema:
    built = strawberry.Schema(Query, config=StrawberryConfig(scalar_map={Micros: MICROS, Int64: INT64}))
    return built._schema  # pyright: ignore[reportPrivateUsage]


SCHEMA = graphql_schema()


def answers(text: str, root: object, variables: dict[str, object] | None = None) -> list[dict[str, Any]]:
    """Return what the usual executor and ours answer."""
    document = parse(text)
    assert validate(SCHEMA, document) == []
    found: list[dict[str, Any]] = []
    for executor in (StrawberryGraphQLCoreExecutionContext, PlannedExecutor):
        result = execute(SCHEMA, document, root_value=root, variable_values=variables, executor_class=executor)
        assert isinstance(result, ExecutionResult)
        errors = sorted((error.formatted for error in result.errors or ()), key=str)
        found.append({"data": result.data, "errors": errors})
    return found


@st.composite
def selections(draw: st.DrawFn) -> str:
    """Draw what somebody may select of a row: aliases, fragments, directives, the same field twice."""
    parts: list[str] = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=8))):
        part = draw(st.sampled_from([name, f"a{number}: {name}"]))
        directive = draw(st.sampled_from(["", "", " @include(if: $yes)", " @skip(if: $yes)"]))
        part = part.replace(" {", f"{directive} {{") if "{" in part else part + directive
        parts.append(draw(st.sampled_from([part, part, f"... on Row {{ {part} }}"])))
    return " ".join(parts)


@given(selections(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_planned_list_answers_as_the_usual_executor_does(selection: str, yes: bool) -> None:  # noqa: FBT001
    query = f"query($yes: Boolean!) {{ used: __typename @include(if: $yes) rows {{ {selection} }} }}"
    usual, ours = answers(query, Query(rows=[ROW, ROW], maybe_rows=[]), {"yes": yes})
    assert ours == usual


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Row) if field.init])
def test_odd_values_answer_as_the_usual_executor_does(name: str) -> None:
    first, *rest = name.split("_")
    selected = "child { name }" if name == "child" else first + "".join(part.capitalize() for part in rest)
    for value in ODD:
        odd = dataclasses.replace(ROW, **{name: value})
        root = Query(rows=[ROW, odd], maybe_rows=[None, odd, ROW])
        usual, ours = answers(f"{{ maybeRows {{ {selected} }} rows {{ id {selected} }} }}", root)
        assert ours == usual, value


@pytest.mark.parametrize("item", [None, Other(text="other"), {"text": "a"}, "text"])
def test_an_item_of_another_kind_answers_as_the_usual_executor_does(item: Any) -> None:
    usual, ours = answers("{ rows { text } maybeRows { text } }", Query(rows=[ROW, item], maybe_rows=[item]))
    assert ours == usual


class Strict(PlannedExecutor):
    """Fails where an item is completed field by field."""

    def complete_list_item_value(self, *_arguments: Any, **_named: Any) -> bool:
        message = "an item was completed field by field"
        raise AssertionError(message)


def test_a_plain_selection_is_planned() -> None:
    query = f"{{ rows {{ {' '.join((*PLAIN, '__typename'))} }} }}"
    result = execute(SCHEMA, parse(query), root_value=Query(rows=[ROW] * 3, maybe_rows=[]), executor_class=Strict)
    assert isinstance(result, ExecutionResult)
    assert result.errors is None
    assert len((result.data or {})["rows"]) == 3
