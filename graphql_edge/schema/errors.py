"""What a refused mutation tells, and how the schema names the contracts' fields. Failed queries: `execution.py`."""

from __future__ import annotations

import strawberry

from mesh.errors import Code, InvalidArgument, MeshError

REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.RESOURCE_EXHAUSTED,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
    }
)
# Where the contracts name a field otherwise than the schema does.
NAMES = {
    "request_id": "idempotencyKey",
    "purchase_request_id": "purchaseIdempotencyKey",
    "target_id": "target",
    "amount_micros": "micros",
    "page_size": "first",
    "page_token": "after",
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "expire_time": "expiresAt",
}


@strawberry.type
class UserError:
    """One reason why a mutation was refused; `field` is the input's field that caused it."""

    code: str
    field: str | None
    message: str


@strawberry.type
class Payload:
    """What every mutation answers; its result is absent where there are errors."""

    user_errors: list[UserError] = strawberry.field(default_factory=list[UserError])


def user_error(error: MeshError, given: object) -> UserError:
    """Describe a refusal; its field is named as in the input `given`."""
    field = error.details.get("field")
    return UserError(code=error.reason, field=named(field, given) if field else None, message=error.message)


def named(field: str, given: object = None) -> str:
    """Return the schema's name of a contract's field; an id that the input calls `id` is called so."""
    field = field.rpartition(".")[2]
    if field in NAMES:
        return NAMES[field]
    if field.endswith("_id") and not hasattr(given, field) and hasattr(given, "id"):
        return "id"
    first, *rest = field.split("_")
    return first + "".join(part.capitalize() for part in rest)


def invalid(field: str, problem: str) -> InvalidArgument:
    """Build the error for an input that the schema's types let through; `field` as in the schema."""
    return InvalidArgument("INVALID_FIELD", f"{field}: {problem}", field=field)
