from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest

from gateway_svc.dialects import chat, responses
from mesh.errors import InvalidArgument

LONG = "å" * 129


def end_user(**fields: Any) -> str:
    """Return the end user of a request, which has the same name in both of OpenAI's dialects."""
    of_chat = chat.parse(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}))
    assert responses.parse(orjson.dumps({"model": "m", "input": "hi", **fields})).end_user == of_chat.end_user
    return of_chat.end_user


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"user": None, "safety_identifier": None}, ""),
        ({"user": "ann"}, "ann"),
        ({"safety_identifier": "bob"}, "bob"),
        ({"safety_identifier": "bob", "user": "ann"}, "bob"),
        ({"safety_identifier": "", "user": "ann"}, "ann"),
        ({"user": LONG[:128]}, LONG[:128]),
        ({"user": LONG}, digest(LONG)),
        ({"user": "an\x00n"}, digest("an\x00n")),
    ],
)
def test_an_end_user_is_who_the_request_names(fields: dict[str, Any], expected: str) -> None:
    assert end_user(**fields) == expected


def test_long_names_that_begin_alike_stay_two_users() -> None:
    assert end_user(user=f"{LONG}a") != end_user(user=f"{LONG}b")


@pytest.mark.parametrize("field", ["safety_identifier", "user"])
@pytest.mark.parametrize("value", [7, ["ann"], {"id": "ann"}, True])
def test_a_name_that_is_no_text_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        end_user(**{field: value})
    assert refused.value.details["field"] == field
