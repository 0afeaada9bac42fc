"""Which dialect can be carried into which; two steps lead over chat completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway_svc.dialects import Dialect, Request
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.translations import StreamTranslation, Translation
from gateway_svc.translations.chat_over_messages import ChatOverMessages
from gateway_svc.translations.messages_over_chat import MessagesOverChat
from gateway_svc.translations.responses_over_chat import ResponsesOverChat


class Chain:
    """One translation over another: the client's dialect over the hub, the hub over the provider's."""

    def __init__(self, near: Translation, far: Translation) -> None:
        self._near = near
        self._far = far

    def request(self, request: Request) -> Request:
        return self._far.request(self._near.request(request))

    def answer(self, body: JsonObject, request: Request) -> JsonObject:
        return self._near.answer(self._far.answer(body, self._near.request(request)), request)

    def stream(self, request: Request) -> StreamTranslation:
        return ChainedStream(self._near.stream(request), self._far.stream(self._near.request(request)))


class ChainedStream:
    """A stream through both."""

    def __init__(self, near: StreamTranslation, far: StreamTranslation) -> None:
        self._near = near
        self._far = far

    def take(self, events: bytes) -> bytes:
        middle = self._far.take(events)
        return self._near.take(middle) if middle else b""

    def end(self, kept: Sequence[bytes]) -> list[bytes]:
        return self._near.end(self._far.end(kept))


PAIRS: Mapping[tuple[Dialect, Dialect], Translation] = {
    (Dialect.CHAT, Dialect.MESSAGES): ChatOverMessages(),
    (Dialect.MESSAGES, Dialect.CHAT): MessagesOverChat(),
    (Dialect.RESPONSES, Dialect.CHAT): ResponsesOverChat(),
    (Dialect.RESPONSES, Dialect.MESSAGES): Chain(ResponsesOverChat(), ChatOverMessages()),
}


def between(near: Dialect, far: Dialect) -> Translation | None:
    """Return what carries a client's dialect into a provider's; None where there is no way, or none is needed."""
    return PAIRS.get((near, far))
