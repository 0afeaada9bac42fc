from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from gateway_svc.dialects.chat import FIELDS, limited, parse, size
from gateway_svc.dialects.fields import UNPRICED
from mesh.errors import InvalidArgument

HALF_DAY = {"mode": "explicit", "ttl": "12h"}


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt", "messages": [{"role": "user", "content": "hi"}], **fields})


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_every_field_of_the_reference_has_a_class() -> None:
    assert CompletionCreateParamsBase.__annotations__.keys() - FIELDS.keys() == set()


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"moderation": {"model": "omni"}}, "UNPRICED_FIELD", "moderation"),
        ({"prompt_cache_options": {"ttl": "12h"}}, "UNPRICED_FIELD", "prompt_cache_options.ttl"),
        (
            said({"type": "text", "text": "a", "prompt_cache_breakpoint": HALF_DAY}),
            "UNPRICED_FIELD",
            "messages[0].content[0].prompt_cache_breakpoint.ttl",
        ),
        (
            said({"type": "file", "file": {"file_id": "file-another-tenants"}}),
            "UNSUPPORTED_FIELD",
            "messages[0].content[0].file.file_id",
        ),
        (
            said({"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}),
            "UNPRICED_FIELD",
            "messages[0].content[0].cache_control.ttl",
        ),
        ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "UNPRICED_FIELD", "cache_control.ttl"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"ttl": "1h"}}]},
            "UNPRICED_FIELD",
            "tools[0].cache_control.ttl",
        ),
        ({"prompt_cache_options": 3}, "INVALID_FIELD", "prompt_cache_options"),
    ],
)
def test_what_is_not_served_is_named(fields: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == (reason, field)


@pytest.mark.parametrize("fields", [{"prompt_cache_options": {"ttl": "30m"}}, {"moderation": None}, {"store": True}])
def test_what_costs_no_more_goes_through(fields: dict[str, Any]) -> None:
    assert size(parse(body(**fields)).document).bounded


def test_only_the_address_of_an_image_is_not_counted_as_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:" + "a" * 10_000}}
    plain = size(parse(body(**said(image))).document)
    stuffed = size(parse(body(**said({**image, "text": "b" * 5_000}))).document)
    assert (plain.images, plain.tokens < 1_000) == (1, True)
    assert stuffed.tokens - plain.tokens >= 5_000


def test_no_foreign_field_is_taken_for_free() -> None:
    assert FIELDS["models"] is UNPRICED


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_tokens": 7},
        {"max_completion_tokens": 7},
        {"max_tokens": 7, "max_completion_tokens": 9},
        {"max_tokens": None, "max_completion_tokens": None},
    ],
)
@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("llama-3.3-70b", "max_tokens"),
        ("gpt-4.1", "max_tokens"),
        ("gpt-6-sol", "max_completion_tokens"),
        ("o3", "max_completion_tokens"),
    ],
)
def test_the_model_decides_which_limit_is_written_whatever_the_client_wrote(
    given: dict[str, Any], model: str, field: str
) -> None:
    document = limited(parse(body(**given)), model, 5)
    assert {name: value for name, value in document.items() if "max" in name} == {field: 5}
