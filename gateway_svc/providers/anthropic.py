"""Anthropic's Messages API (docs.anthropic.com: Messages, Count tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import orjson

from gateway_svc.credentials import Credential
from gateway_svc.dialects import Dialect
from gateway_svc.dialects.reading import Json
from gateway_svc.providers import BrokenOff, Call, NotSent
from gateway_svc.providers.vendor import Vendor

VERSION = "2023-06-01"
COUNT_PATH = "/v1/messages/count_tokens"
OK = 200


class Anthropic(Vendor):
    """Anthropic's API, below a base URL with or without the version."""

    paths: ClassVar[Mapping[Dialect, str]] = {Dialect.MESSAGES: "/v1/messages"}
    common: ClassVar[frozenset[Dialect]] = frozenset({Dialect.MESSAGES})

    def authorized(self, credential: Credential) -> dict[str, str]:
        return {"x-api-key": credential.secret.reveal(), "anthropic-version": VERSION}

    async def count(self, call: Call) -> int | None:
        """Ask how many input tokens a request is, which is free; None where it is not told."""
        try:
            async with self.post(call, COUNT_PATH) as answer:
                told: Json = orjson.loads(await answer.body()) if answer.status == OK else None
        except (NotSent, BrokenOff, orjson.JSONDecodeError):
            return None
        tokens = told.get("input_tokens") if isinstance(told, dict) else None
        return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None
