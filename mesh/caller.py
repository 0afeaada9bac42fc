"""Who is behind the present call: the service, and the person it acts for. Handlers read this and never a token."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from mesh.errors import Unauthenticated
from mesh.secret import Secret


@dataclass(frozen=True, slots=True)
class Person:
    """A person as a verified mesh token vouches for them; `grants` gives the role in each organization."""

    id: str
    session_id: str
    grants: Mapping[str, str]
    token: Secret


@dataclass(frozen=True, slots=True)
class Caller:
    """The calling service, by its certificate, and the person behind it, if any."""

    service: str
    person: Person | None = field(default=None)

    @property
    def actor(self) -> str:
        """Return who to write down as the one that acted."""
        return self.person.id if self.person else f"service:{self.service}"


_CURRENT: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current() -> Caller:
    """Return the caller of the RPC being served; outside of one, the error says so."""
    caller = _CURRENT.get()
    if caller is None:
        raise Unauthenticated("NO_CALLER", "nobody is calling")
    return caller


def current_person() -> Person:
    """Return the person behind the call; UNAUTHENTICATED when there is none."""
    person = current().person
    if person is None:
        raise Unauthenticated("NOT_LOGGED_IN", "nobody is logged in")
    return person


def token() -> Secret | None:
    """Return the mesh token to pass on, if a person is behind the call."""
    caller = _CURRENT.get()
    return caller.person.token if caller and caller.person else None


@contextmanager
def acting(caller: Caller) -> Generator[None]:
    """Make `caller` the current one inside the block."""
    reset = _CURRENT.set(caller)
    try:
        yield
    finally:
        _CURRENT.reset(reset)
