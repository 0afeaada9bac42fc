"""The one error taxonomy: what a service may raise and what its caller receives. No wire format in here.

A reason is UPPER_SNAKE, means one thing in the whole mesh and stands in docs/api.md. Details are text, shown to the
caller, and never hold a secret. Whatever is not a MeshError is a bug: callers see INTERNAL with its text stripped.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The numbers of google.rpc.Code that the mesh uses."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class MeshError(Exception):
    """An outcome that the caller is meant to act on."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, reason: str, message: str, *, retry_after_ms: int | None = None, **details: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.details = details


class InvalidArgument(MeshError):
    """The request is wrong in itself; details name the field."""

    code = Code.INVALID_ARGUMENT


class NotFound(MeshError):
    """The named object does not exist, or the caller may not know that it does."""

    code = Code.NOT_FOUND


class AlreadyExists(MeshError):
    """The object, or another request under this key, is there already; details name the field that differs."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(MeshError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(MeshError):
    """The caller is not known."""

    code = Code.UNAUTHENTICATED


class Exhausted(MeshError):
    """A budget, balance, quota or rate limit is used up."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(MeshError):
    """The state of the object does not allow this; a retry alone will not help."""

    code = Code.FAILED_PRECONDITION


class Aborted(MeshError):
    """The caller acted on something stale: read again, then retry."""

    code = Code.ABORTED


class Unavailable(MeshError):
    """A part of the mesh cannot answer now; a retry may help."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(MeshError):
    """The time given by the caller ran out."""

    code = Code.DEADLINE_EXCEEDED


class Internal(MeshError):
    """Something broke; what it was stands in the log under the request id."""

    code = Code.INTERNAL


KINDS: dict[Code, type[MeshError]] = {kind.code: kind for kind in MeshError.__subclasses__()}


def invalid(field: str, problem: str) -> InvalidArgument:
    """Build the error for a bad field: `INVALID_FIELD`, with the field's name in its details."""
    return InvalidArgument("INVALID_FIELD", f"{field}: {problem}", field=field)
