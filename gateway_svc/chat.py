"""A chat completion request as the client sent it: read and checked, never changed. What it may cost is in `bounds`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from mesh.errors import InvalidArgument, invalid

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = "dict[str, Json]"

DEPTH_MAX = 64
CHOICES_MAX = 16
MODEL_CHARACTERS_MAX = 200
MESSAGES_MAX = 10_000
TOKENS_MAX = 10**8
END_USER_CHARACTERS_MAX = 128


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request; `document` is all of it."""

    document: JsonObject
    model: str
    messages: tuple[JsonObject, ...]
    stream: bool
    usage_wanted: bool
    max_tokens: int | None  # the client's own limit for each choice, under either name
    choices: int
    end_user: str  # on whose behalf, for reports; '' when it does not say


def parse(body: bytes) -> ChatRequest:
    """Read a request; InvalidArgument names the field that is wrong."""
    document = document_of(body)
    model = document.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARACTERS_MAX:
        raise invalid("model", f"must be a text of 1 to {MODEL_CHARACTERS_MAX} characters")
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid("stream", "must be true or false")
    return ChatRequest(
        document=document,
        model=model,
        messages=_messages(document.get("messages")),
        stream=bool(stream),
        usage_wanted=_usage_wanted(document.get("stream_options")),
        max_tokens=_max_tokens(document),
        choices=_whole(document, "n", CHOICES_MAX) or 1,
        end_user=_end_user(document),
    )


def document_of(body: bytes) -> JsonObject:
    """Read a JSON object that is nested no deeper than 64."""
    try:
        document: Json = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidArgument("INVALID_JSON", "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidArgument("INVALID_JSON", "the body must be a JSON object")
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _deeper_than(document, DEPTH_MAX):
        raise InvalidArgument("INVALID_JSON", f"the body is nested deeper than {DEPTH_MAX}")
    return document


def texts_of(message: JsonObject) -> list[str]:
    """Return the plain texts of a message's content."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    parts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return [text for text in parts if isinstance(text, str)]


def _messages(value: Json) -> tuple[JsonObject, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES_MAX:
        raise invalid("messages", f"must be a list of 1 to {MESSAGES_MAX} messages")
    messages: list[JsonObject] = []
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise invalid(f"messages[{index}]", "must be an object")
        if not isinstance(message.get("role"), str):
            raise invalid(f"messages[{index}].role", "must be a text")
        if not isinstance(message.get("content"), str | list | None):
            raise invalid(f"messages[{index}].content", "must be a text or a list of parts")
        messages.append(message)
    return tuple(messages)


def _usage_wanted(options: Json) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("stream_options", "must be an object")
    return options.get("include_usage") is True


def _end_user(document: JsonObject) -> str:
    """Return who is named, the newer field first; a name that is too long, or has a NUL, by its SHA-256."""
    given = [_name(document, field) for field in ("safety_identifier", "user")]
    name = given[0] or given[1]
    if len(name) > END_USER_CHARACTERS_MAX or "\x00" in name:
        return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return name


def _name(document: JsonObject, field: str) -> str:
    value = document.get(field)
    if value is not None and not isinstance(value, str):
        raise invalid(field, "must be a text")
    return value or ""


def _max_tokens(document: JsonObject) -> int | None:
    given = [_whole(document, name, TOKENS_MAX) for name in ("max_tokens", "max_completion_tokens")]
    return min((value for value in given if value is not None), default=None)


def _whole(document: JsonObject, name: str, maximum: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise invalid(name, f"must be a whole number from 1 to {maximum}")
    return value


def _deeper_than(document: JsonObject, depth_max: int) -> bool:
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
