"""Model providers: where each is asked, in which dialect, with whose key. Who may ask, and the price, are not here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway_svc.credentials import Credential
from gateway_svc.dialects import Dialect, Request
from gateway_svc.dialects.reading import JsonObject
from mesh.secret import Secret


class NotSent(Exception):
    """No byte reached the provider: nothing can have been billed."""


class BrokenOff(Exception):
    """The provider's answer broke off, or never came: what it billed is not known."""


class TooLarge(BrokenOff):
    """The answer is more than we take: the provider is well, and what it billed is not known all the same."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a provider, in a dialect that it speaks, and `document` as it goes upstream, our limit in it."""

    request_id: str
    request: Request
    document: JsonObject
    model: str
    output_tokens: int  # for each choice
    credential: Credential | None
    mock: str = ""

    @property
    def secret(self) -> Secret | None:
        """Return what must be scrubbed from whatever the provider says."""
        return self.credential.secret if self.credential is not None else None


class Exchange(Protocol):
    """A provider's answer whose head has arrived, in the dialect of the call."""

    status: int
    retry_after: str

    async def body(self) -> bytes:
        """Return all of a whole answer; BrokenOff when it ends early."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Give a stream's bytes as they come; BrokenOff when it ends early."""
        ...


class Provider(Protocol):
    """A way to ask one vendor's models."""

    needs_credential: bool

    def speaks(self, credential: Credential | None) -> frozenset[Dialect]:
        """Return the dialects that are spoken where this key leads."""
        ...

    def check(self, order: str) -> None:
        """Raise MeshError for orders (`x-mock`) that can't be followed, before anything is held."""
        ...

    def ask(self, call: Call) -> AbstractAsyncContextManager[Exchange]:
        """Send a request and wait for the head of its answer; NotSent or BrokenOff when there is none."""
        ...

    async def count(self, call: Call) -> int | None:
        """Return how many input tokens a request is, as the provider counts; None where it has no way to say."""
        ...
