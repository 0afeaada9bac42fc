"""Read what a provider sends before it is translated: JSON that is shallow enough to be written again. Pure."""

from __future__ import annotations

import orjson

from gateway_svc.dialects.reading import Json, JsonObject, deeper_than

DEPTH_MAX = 128  # what is written can be nested 254 deep, and translations put it a few levels lower
INDEX_CHARACTERS_MAX = 64


def event_of(data: bytes) -> Json:
    """Read the data of an event; ValueError for what is no JSON, or too deep."""
    document: Json = orjson.loads(data)
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and deeper_than(document, DEPTH_MAX):
        raise ValueError("the event is nested too deep")
    return document


def answer_of(body: JsonObject) -> JsonObject:
    """Return a whole answer; ValueError for one that is too deep."""
    if deeper_than(body, DEPTH_MAX):
        raise ValueError("the answer is nested too deep")
    return body


def index_of(owner: JsonObject) -> int | str | None:
    """Return by which number a provider knows one of its parts; ValueError where it is none."""
    match owner.get("index"):
        case None:
            return None
        case int(index):
            return index
        case str(name) if len(name) <= INDEX_CHARACTERS_MAX:
            return name
        case _:
            raise ValueError("an index is no number")


def object_of(text: str) -> JsonObject | None:
    """Read the arguments of a call; None for what is no object, or too deep."""
    try:
        value = event_of(text.encode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
