"""Which module reads, sizes and limits a request of each dialect. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway_svc.dialects import Dialect, Request, Size, chat, embeddings, messages, responses
from gateway_svc.dialects.reading import JsonObject


@dataclass(frozen=True, slots=True)
class Reader:
    """What one dialect's module does."""

    parse: Callable[[bytes], Request]
    size: Callable[[JsonObject], Size]
    limited: Callable[[Request, str, int], JsonObject]


READERS: Mapping[Dialect, Reader] = {
    Dialect.CHAT: Reader(chat.parse, chat.size, chat.limited),
    Dialect.RESPONSES: Reader(responses.parse, responses.size, responses.limited),
    Dialect.MESSAGES: Reader(messages.parse, messages.size, messages.limited),
    Dialect.EMBEDDINGS: Reader(embeddings.parse, embeddings.size, embeddings.limited),
}


def parse(dialect: Dialect, body: bytes) -> Request:
    """Read a request; InvalidArgument names the field that is wrong."""
    return READERS[dialect].parse(body)


def size_of(request: Request) -> Size:
    """Return what bounds a request's input."""
    return READERS[request.dialect].size(request.document)


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:
    """Return a request as it goes to a provider, with our limit for each choice and the provider's model in it."""
    return READERS[request.dialect].limited(request, model, output_tokens)
