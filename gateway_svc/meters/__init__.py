"""Providers' streams followed event by event: what may be passed on, what is kept to the last, what was used. Pure."""

from __future__ import annotations

from typing import Protocol

from gateway_svc.usage import TokenUsage


class Meter(Protocol):
    """One stream of one dialect."""

    kept: list[bytes]
    """Its last events, held back until the charge is committed."""
    failure: bytes
    """Data of the event that reports an error; empty when there is none."""
    over: bool
    """Whether nothing more is to come."""
    complete: bool
    """Whether it ended as a whole answer ends."""

    @property
    def usage(self) -> TokenUsage | None:
        """Return the provider's figures; None where they are missing, or from before most of what it wrote."""
        ...

    @property
    def counted_tokens(self) -> int | None:
        """Return our own count of the output; None where what arrived can't be counted."""
        ...

    @property
    def told_input(self) -> TokenUsage | None:
        """Return the classes of the input where the provider tells them at the beginning; the output is 0."""
        ...

    @property
    def wrote(self) -> bool:
        """Return whether anything was seen that the model wrote, or that nobody can read."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take in bytes and return the whole events that may be passed on; OversizedEvent for one that never ends."""
        ...

    def end(self) -> bytes:
        """Take in the end of the stream and return what of it may be passed on."""
        ...
