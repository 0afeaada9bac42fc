from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.embedding_create_params import EmbeddingCreateParams

from gateway_svc.dialects import Dialect, Size
from gateway_svc.dialects.embeddings import FIELDS, INPUT_TOKENS, INPUTS_MAX, limited, parse, size
from gateway_svc.providers.http1.exchange import BODY_BYTES_MAX
from mesh.errors import InvalidArgument


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "e", "input": "hi", **fields})


def sized(**fields: Any) -> Size:
    return size(parse(body(**fields)).document)


def test_every_field_of_the_reference_has_a_class() -> None:
    assert EmbeddingCreateParams.__annotations__.keys() - FIELDS.keys() == set()


def test_a_request_is_read_and_generates_nothing() -> None:
    request = parse(body(user="u", dimensions=3, encoding_format="base64"))
    assert (request.dialect, request.model, request.generates) == (Dialect.EMBEDDINGS, "e", False)
    assert (request.end_user, request.tools, request.stream) == ("u", (), False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1, -1]]}, "input[0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [1, "a"]}, "input[0]"),
        ({"input": [{"text": "a"}]}, "input[0]"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": []}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 2_000_000}, "dimensions"),
        ({"model": ""}, "model"),
        ({"user": 3}, "user"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "fit"),
    [
        ({}, 585),
        ({"encoding_format": "float"}, 585),
        ({"encoding_format": "base64"}, 1_517),
        ({"model": "text-embedding-3-small"}, 1_170),
        ({"model": "text-embedding-3-small", "dimensions": 3_072}, 585),
        ({"dimensions": 1_024}, 1_755),
    ],
)
def test_so_many_inputs_are_taken_as_their_answer_can_be(fields: dict[str, Any], fit: int) -> None:
    assert parse(body(input=["a"] * fit, **fields)).model
    with pytest.raises(InvalidArgument) as caught:
        parse(body(input=["a"] * (fit + 1), **fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", "input")
    assert f"{fit} vectors" in caught.value.message


def test_an_answer_to_what_is_taken_is_no_larger_than_a_body_may_be() -> None:
    vector = base64.b64encode(bytes(4 * 3_072)).decode()
    answer = {"object": "embedding", "index": 1_516, "embedding": vector}
    assert 1_517 * (len(orjson.dumps(answer)) + 1) < BODY_BYTES_MAX
    floats = [-0.012345678] * 3_072
    assert 585 * (len(orjson.dumps({**answer, "embedding": floats})) + 1) < BODY_BYTES_MAX


@pytest.mark.parametrize("name", ["api_base", "fallbacks", "extra_body"])
def test_what_no_price_covers_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**{name: "x"}))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNPRICED_FIELD", name)


@pytest.mark.parametrize(
    ("given_input", "tokens"),
    [([5] * 700, 700 + INPUT_TOKENS), ([[5] * 700, [6] * 3], 703 + 2 * INPUT_TOKENS)],
)
def test_token_ids_count_as_many_as_they_are(given_input: Any, tokens: int) -> None:
    assert sized(input=given_input).tokens == tokens


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_the_bound_is_never_below_the_bytes_of_the_texts(texts: list[str]) -> None:
    found = sized(input=texts)
    assert found.text_bytes == sum(len(text.encode(errors="replace")) for text in texts)
    assert found.tokens >= found.text_bytes + INPUT_TOKENS * len(texts)


def test_a_task_counts_once_for_each_text() -> None:
    task = "a" * 100
    assert sized(input=["a"] * 3, task=task).tokens - sized(input=["a"] * 3).tokens >= 300


def test_a_field_that_nobody_knows_has_no_bound() -> None:
    assert sized().bounded
    assert not sized(prefix="x").bounded


def test_our_model_goes_upstream_and_nothing_else_changes() -> None:
    request = parse(body(dimensions=3))
    assert limited(request, "other", 99) == {**request.document, "model": "other"}
