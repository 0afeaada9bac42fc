"""Which dialect's words a client is told in. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_svc.dialects import Dialect
from gateway_svc.tellings import Telling
from gateway_svc.tellings.chat import ChatTelling
from gateway_svc.tellings.messages import MessagesTelling
from gateway_svc.tellings.responses import ResponsesTelling

OPENAI = ChatTelling()
TELLINGS: Mapping[Dialect, Telling] = {
    Dialect.CHAT: OPENAI,
    Dialect.EMBEDDINGS: OPENAI,
    Dialect.RESPONSES: ResponsesTelling(),
    Dialect.MESSAGES: MessagesTelling(),
}
