"""Model providers: one module a dialect, each answering in OpenAI's shape. Who may ask, and the price, are not here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway_svc.bounds import Model
from gateway_svc.chat import ChatRequest
from gateway_svc.credentials import Credential
from mesh.secret import Secret


class NotSent(Exception):
    """No byte reached the provider: nothing can have been billed."""


class BrokenOff(Exception):
    """The provider's answer broke off, or never came: what it billed is not known."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a provider; `output_tokens` is the limit for each choice that the hold covers."""

    request_id: str
    chat: ChatRequest
    model: Model
    output_tokens: int
    credential: Credential | None
    mock: str = ""

    @property
    def secret(self) -> Secret | None:
        """Return what must be scrubbed from whatever the provider says."""
        return self.credential.secret if self.credential is not None else None


class Exchange(Protocol):
    """A provider's answer whose head has arrived."""

    status: int
    retry_after: str

    async def body(self) -> bytes:
        """Return all of a whole answer in OpenAI's shape; BrokenOff when it ends early."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Give a stream's bytes in OpenAI's shape as they come; BrokenOff when it ends early."""
        ...


class Provider(Protocol):
    """A way to ask one vendor's models."""

    needs_credential: bool

    def check(self, call: Call) -> None:
        """Raise MeshError for a request that this dialect can't carry, before anything is sent."""
        ...

    def ask(self, call: Call) -> AbstractAsyncContextManager[Exchange]:
        """Send a request and wait for the head of its answer; NotSent or BrokenOff when there is none."""
        ...
