from __future__ import annotations

import base64
import json

import pytest

from mesh.errors import InvalidArgument
from mesh.paging import Page, next_token, page_of


def token_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def test_a_page_goes_on_after_the_last_key_of_the_one_before() -> None:
    first = page_of(2, "")
    token = next_token(first, ["a", "b", "c"])
    assert page_of(2, token) == Page(2, "b")
    assert next_token(page_of(2, token), ["c"]) == ""


@pytest.mark.parametrize(
    "token",
    ["!", "AAAA", *map(token_of, ({}, [], {"after": 1}, {"after": "a\0"}, {"after": "\ud800"}, {"after": "é"}))],
)
def test_a_token_that_no_list_gave_out_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        page_of(2, token)
    assert error.value.details == {"field": "page_token"}


@pytest.mark.parametrize("size", [-1, 101])
def test_a_page_has_a_most(size: int) -> None:
    with pytest.raises(InvalidArgument):
        page_of(size, "")
