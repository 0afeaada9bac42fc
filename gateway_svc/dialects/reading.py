"""Read JSON requests: objects of bounded depth, and fields with an error that names them. Pure."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import orjson

from mesh.errors import InvalidArgument, invalid

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = "dict[str, Json]"

DEPTH_MAX = 64
MODEL_CHARACTERS_MAX = 200
TOKENS_MAX = 10**8
TOOLS_MAX = 1_024
END_USER_CHARACTERS_MAX = 128


def document_of(body: bytes) -> JsonObject:
    """Read a JSON object that is nested no deeper than 64."""
    try:
        document: Json = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidArgument("INVALID_JSON", "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidArgument("INVALID_JSON", "the body must be a JSON object")
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and deeper_than(document, DEPTH_MAX):
        raise InvalidArgument("INVALID_JSON", f"the body is nested deeper than {DEPTH_MAX}")
    return document


def model_of(document: JsonObject) -> str:
    """Return the model that is asked for."""
    model = document.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARACTERS_MAX:
        raise invalid("model", f"must be a text of 1 to {MODEL_CHARACTERS_MAX} characters")
    return model


def flag(document: JsonObject, name: str) -> bool:
    """Return a field that is true or false; absent is false."""
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, "must be true or false")
    return bool(value)


def whole(document: JsonObject, name: str, maximum: int = TOKENS_MAX, field: str = "") -> int | None:
    """Return a field that is a whole number of at least 1; None when it is absent."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise invalid(field or name, f"must be a whole number from 1 to {maximum}")
    return value


def text(document: JsonObject, name: str, field: str = "") -> str:
    """Return a field that is a text; absent is empty."""
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(field or name, "must be a text")
    return value or ""


def member(document: JsonObject, name: str) -> JsonObject:
    """Return a field that is an object; absent is empty."""
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, "must be an object")
    return value


def listed(document: JsonObject, name: str, maximum: int) -> list[Json]:
    """Return a field that is a list of at most so many; absent is empty."""
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > maximum:
        raise invalid(name, f"must be a list of at most {maximum}")
    return value


def end_user(*names: str) -> str:
    """Return the first name that is given; one that is too long, or has a NUL, by its SHA-256."""
    name = next(filter(None, names), "")
    if len(name) > END_USER_CHARACTERS_MAX or "\x00" in name:
        return f"sha256:{hashlib.sha256(name.encode(errors='replace')).hexdigest()}"
    return name


def parts_of(content: Json) -> list[Json]:
    """Return the parts of a content that is a list; a text has none."""
    return content if isinstance(content, list) else []


def deeper_than(document: Json, depth_max: int) -> bool:
    """Return whether objects and lists stand in one another to more than a depth."""
    level: list[Json] = [document]
    for _ in range(depth_max):
        below: list[Json] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        level = [value for value in below if isinstance(value, dict | list)]
        if not level:
            return False
    return True
