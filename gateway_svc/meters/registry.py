"""Which meter follows a stream of each dialect, and what reads the usage of its whole answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway_svc.dialects import Dialect
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.meters import Meter, chat, embeddings, messages, responses
from gateway_svc.usage import TokenUsage


@dataclass(frozen=True, slots=True)
class Metering:
    """How one dialect tells what was used; one without streams has no meter."""

    usage_of: Callable[[JsonObject], TokenUsage | None]
    meter: Callable[[], Meter] | None


METERING: Mapping[Dialect, Metering] = {
    Dialect.CHAT: Metering(chat.usage_of, chat.ChatMeter),
    Dialect.RESPONSES: Metering(responses.usage_of, responses.ResponsesMeter),
    Dialect.MESSAGES: Metering(messages.usage_of, messages.MessagesMeter),
    Dialect.EMBEDDINGS: Metering(embeddings.usage_of, None),
}
