"""Laws of what bounds a request's input, over whatever a client may nest in it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.dialects import Dialect, Size
from gateway_svc.dialects.registry import parse, size_of
from mesh.errors import InvalidArgument

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
PICTURES = st.one_of(st.integers(0, 2_000).map("A".__mul__), TEXTS, st.none(), st.lists(TEXTS, max_size=2))
MEMBERS = {Dialect.CHAT: "messages", Dialect.RESPONSES: "input", Dialect.MESSAGES: "messages"}


def chat_parts() -> st.SearchStrategy[Any]:
    addresses = st.one_of(PICTURES, st.fixed_dictionaries({"url": PICTURES}, optional={"more": TEXTS}))
    image = st.fixed_dictionaries({"type": st.just("image_url")}, optional={"image_url": addresses, "text": TEXTS})
    return st.one_of(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), image)


def response_parts() -> st.SearchStrategy[Any]:
    image = st.fixed_dictionaries({"type": st.just("input_image")}, optional={"image_url": PICTURES, "text": TEXTS})
    return st.one_of(st.fixed_dictionaries({"type": st.just("input_text"), "text": TEXTS}), image)


def blocks() -> st.SearchStrategy[Any]:
    text = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS})

    def holding(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        kinds = st.sampled_from(["image", "tool_result", "document"])
        source = st.fixed_dictionaries(
            {"type": st.sampled_from(["base64", "url", "content"])},
            optional={"data": PICTURES, "url": PICTURES, "content": st.lists(inner, max_size=2)},
        )
        held = st.fixed_dictionaries(
            {"type": kinds}, optional={"source": source, "content": st.lists(inner, max_size=2), "text": TEXTS}
        )
        return st.one_of(text, held)

    return st.recursive(text, holding, max_leaves=6)


PARTS = {Dialect.CHAT: chat_parts(), Dialect.RESPONSES: response_parts(), Dialect.MESSAGES: blocks()}


def sized(dialect: Dialect, parts: list[Any]) -> Size | None:
    """Return a request's size; None for one that is refused."""
    body = {"model": "m", "max_tokens": 9, MEMBERS[dialect]: [{"role": "user", "content": parts}]}
    if dialect is Dialect.RESPONSES:
        del body["max_tokens"]
    try:
        return size_of(parse(dialect, orjson.dumps(body)))
    except InvalidArgument:
        return None


def text_bytes(value: Any) -> int:
    """Add up every text, wherever it stands; what is in an image's own place is no text."""
    if isinstance(value, list):
        return sum(text_bytes(item) for item in value)
    if not isinstance(value, dict):
        return 0
    own = value.get("text")
    return (len(own.encode()) if isinstance(own, str) else 0) + sum(text_bytes(item) for item in value.values())


@pytest.mark.parametrize("dialect", MEMBERS)
@given(data=st.data())
def test_a_size_is_at_least_the_bytes_of_all_texts(dialect: Dialect, data: st.DataObject) -> None:
    parts = data.draw(st.lists(PARTS[dialect], min_size=1, max_size=4))
    size = sized(dialect, parts)
    assert size is None or size.tokens >= max(text_bytes(parts), 1)


@pytest.mark.parametrize("dialect", MEMBERS)
@given(data=st.data())
def test_nothing_that_is_added_makes_a_request_smaller(dialect: Dialect, data: st.DataObject) -> None:
    parts = data.draw(st.lists(PARTS[dialect], min_size=1, max_size=4))
    more = [*parts, data.draw(PARTS[dialect])]
    before, after = sized(dialect, parts), sized(dialect, more)
    assert before is None or after is None or (after.tokens >= before.tokens and after.images >= before.images)
