"""The wire dialects of clients and providers: what a request says in each, and what it can cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway_svc.dialects.reading import JsonObject


class Dialect(StrEnum):
    """A kind of request, named as policies name the endpoint that takes it."""

    CHAT = "chat.completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Size:
    """What bounds a request's input tokens, before the model is known.

    `tokens` is a token for each UTF-8 byte and what a template adds; `foreign_tokens` is what vendors add that write
    prompts of their own for tools and formats. Images have a bound each, by vendor. `text_bytes` is what the mock
    models count. Where `bounded` is false, only the model's context window bounds it.
    """

    tokens: int
    foreign_tokens: int = 0
    images: int = 0
    text_bytes: int = 0
    bounded: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sent it, read and checked; `document` is all of it and is never changed."""

    dialect: Dialect
    document: JsonObject
    model: str
    stream: bool = False
    usage_wanted: bool = False  # whether the client asked for usage in its stream
    max_tokens: int | None = None  # the client's own limit for each choice
    output_tokens_least: int = 1  # a smaller limit would be refused by the vendor, as one below a thinking budget
    choices: int = 1
    generates: bool = True  # false where there is no output to limit, as for embeddings
    tools: tuple[str, ...] = ()  # names of the functions that the model may call
    end_user: str = ""  # on whose behalf, for reports; '' when it does not say
