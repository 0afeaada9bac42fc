"""How the gateway's own words are told to clients of each dialect: receipts, endings of streams, errors. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway_svc.dialects.reading import JsonObject


class Telling(Protocol):
    """One dialect's way to say it; `error` has OpenAI's members: message, type, param, code."""

    request_id_header: str

    def ending(self, kept: Sequence[bytes], x_platform: JsonObject, *, usage_wanted: bool) -> bytes:
        """Return the last bytes of a stream: the events that were held back, with the receipt among them."""
        ...

    def failure_event(self, error: JsonObject) -> bytes:
        """Return an error as the last event of a stream that broke off."""
        ...

    def error_body(self, status: int, error: JsonObject, request_id: str) -> bytes:
        """Return an error as a whole answer."""
        ...
