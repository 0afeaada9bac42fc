"""OpenAI and whatever speaks its dialects; tenants' own servers are asked for chat completions and embeddings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway_svc.dialects import Dialect
from gateway_svc.providers.vendor import Vendor


class OpenAI(Vendor):
    """OpenAI's API, below a base URL that has its version (platform.openai.com: API reference)."""

    paths: ClassVar[Mapping[Dialect, str]] = {
        Dialect.CHAT: "/chat/completions",
        Dialect.RESPONSES: "/responses",
        Dialect.EMBEDDINGS: "/embeddings",
    }
    common: ClassVar[frozenset[Dialect]] = frozenset({Dialect.CHAT, Dialect.EMBEDDINGS})
