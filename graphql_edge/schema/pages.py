"""Lists of the schema: pages of at most 100 with an opaque cursor, as the services' own page tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import strawberry

from graphql_edge.schema.errors import invalid

Node = TypeVar("Node")
Message = TypeVar("Message")

SIZE_DEFAULT, SIZE_MAX = 50, 100


@strawberry.type(description="Whether a list goes on, and from where.")
class PageInfo:
    """Give `endCursor` as the next page's `after`."""

    end_cursor: str | None
    has_next_page: bool


@strawberry.type(description="One page of a list.")
class Connection(Generic[Node]):
    """One page."""

    nodes: list[Node]
    page_info: PageInfo


def connection(of: Callable[[Message], Node], messages: Iterable[Message], next_token: str) -> Connection[Node]:
    """Build a page from a list answer."""
    info = PageInfo(end_cursor=next_token or None, has_next_page=bool(next_token))
    return Connection(nodes=[of(message) for message in messages], page_info=info)


def size_of(first: int) -> int:
    """Return the size that a query asked for; INVALID_FIELD unless it is 1 to 100."""
    if not 1 <= first <= SIZE_MAX:
        raise invalid("first", f"must be 1 to {SIZE_MAX}")
    return first
