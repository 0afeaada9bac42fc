"""Requests and answers carried from one dialect into another; what has no place there is refused, never dropped. Pure.

Chat completions are the hub: a client's Messages or Responses request becomes a chat completion, and that what the
provider speaks; answers come back the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway_svc.dialects import Request
from gateway_svc.dialects.reading import JsonObject


class StreamTranslation(Protocol):
    """One stream on its way from the provider's dialect (far) to the client's (near), in whole events."""

    def take(self, events: bytes) -> bytes:
        """Translate events that are not the stream's last; ValueError for what is not the far dialect."""
        ...

    def end(self, kept: Sequence[bytes]) -> list[bytes]:
        """Translate the last events, of which usage is one: the near dialect's last ones, without a [DONE]."""
        ...


class Translation(Protocol):
    """One pair of dialects; stateless."""

    def request(self, request: Request) -> Request:
        """Return the request in the far dialect, with its limit still the client's; InvalidArgument names a field."""
        ...

    def answer(self, body: JsonObject, request: Request) -> JsonObject:
        """Return a whole answer in the near dialect; `request` is the client's own. ValueError for what is none."""
        ...

    def stream(self, request: Request) -> StreamTranslation:
        """Begin to translate a stream; `request` is the client's own."""
        ...
