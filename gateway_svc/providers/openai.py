"""OpenAI and whatever speaks its dialects; tenants' own servers are asked for chat completions and embeddings alone."""

from __future__ import annotations

from gateway_svc.dialects import Dialect
from gateway_svc.providers.vendor import Vendor


class OpenAI(Vendor):
    """OpenAI's API, below a base URL that has its version (platform.openai.com: API reference)."""

    paths = {
        Dialect.CHAT: "/chat/completions",
        Dialect.RESPONSES: "/responses",
        Dialect.EMBEDDINGS: "/embeddings",
    }
    common = frozenset({Dialect.CHAT, Dialect.EMBEDDINGS})
