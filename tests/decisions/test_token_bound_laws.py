"""The bound is a token for each UTF-8 byte and more: a byte-level BPE's tokens are of one byte or more each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc.dialects import Dialect
from gateway_svc.dialects.registry import limited, parse, size_of
from gateway_svc.translations.registry import PAIRS
from tests.prompts import MAKERS, overhead_of, request, texts_of

seeds = st.integers(0, 2**32)


def bytes_read(document: dict[str, Any]) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts_of(document)) + overhead_of(document)


@pytest.mark.parametrize("dialect", MAKERS)
@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_bound_is_no_less_than_the_bytes_of_all_that_a_model_reads(dialect: Dialect, seed: int) -> None:
    asked = parse(dialect, request(dialect, seed))
    size = size_of(asked)
    assert size.bounded
    assert size.tokens >= bytes_read(dict(limited(asked, "m", 16)))


@pytest.mark.parametrize(("near", "far"), PAIRS)
@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_translated_bound_is_no_less_than_the_bytes_of_what_is_sent(near: Dialect, far: Dialect, seed: int) -> None:
    asked = parse(near, request(near, seed))
    carried = PAIRS[near, far].request(asked)
    assert carried.dialect is far
    size = size_of(carried)
    assert size.bounded
    assert size.tokens >= bytes_read(dict(limited(carried, "m", 16)))
