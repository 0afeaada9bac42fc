"""Every mutation is idempotent by its request id: the first answer is kept in the same commit and given again.

A service's schema holds `requests` (see `TABLE`). What is kept never holds a secret: fields marked debug_redact are
cleared first, so the replay of an answer that carried one comes without it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from mesh import audit, caller
from mesh.db import Connection, Database
from mesh.errors import AlreadyExists, invalid

if TYPE_CHECKING:
    from google.protobuf.message import Message

TABLE = """
CREATE TABLE requests (
  actor       text NOT NULL,
  method      text NOT NULL,
  request_id  text NOT NULL,
  request     bytea NOT NULL,
  digest      bytea NOT NULL,
  response    bytea NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (actor, method, request_id)
);
"""
REQUEST_ID = re.compile(r"^[A-Za-z0-9_.:-]{1,64}$")

Answer = TypeVar("Answer", bound="Message")


@dataclass(frozen=True, slots=True)
class Once(Generic[Answer]):
    """An answer, and whether it had been given before."""

    answer: Answer
    replayed: bool


async def once(
    db: Database,
    request: Message,
    kind: type[Answer],
    make: Callable[[Connection], Awaitable[Answer]],
    *,
    audited: Callable[[Answer], audit.Fact],
    pepper: bytes,
) -> Once[Answer]:
    """Run `make` in one transaction with the record of its answer, or give the answer it gave before.

    `audited` says of the answer what goes into the audit chain. `pepper` keys the digest of the request, which may hold
    secrets. The same id with another request is ALREADY_EXISTS and names the field that differs.
    """
    request_id = check_request_id(request)
    method = type(request).DESCRIPTOR.full_name
    actor = caller.current().actor
    digest = _digest(request, pepper)
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", f"{actor} {method} {request_id}")
        row = await tx.fetchrow(
            "SELECT request, digest, response FROM requests WHERE actor = $1 AND method = $2 AND request_id = $3",
            actor,
            method,
            request_id,
        )
        if row is not None:
            if not hmac.compare_digest(row["digest"], digest):
                field = _difference(request, type(request).FromString(row["request"]))
                raise AlreadyExists("REQUEST_ID_REUSED", f"request_id was used with another {field}", field=field)
            return Once(kind.FromString(row["response"]), replayed=True)
        answer = await make(tx)
        await audit.record(tx, audited(answer))
        await tx.execute(
            "INSERT INTO requests (actor, method, request_id, request, digest, response)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            actor,
            method,
            request_id,
            without_secrets(request).SerializeToString(),
            digest,
            without_secrets(answer).SerializeToString(),
        )
        return Once(answer, replayed=False)


def check_request_id(request: Message) -> str:
    """Return the request's id; InvalidArgument when it has none that can be a key."""
    request_id = str(getattr(request, "request_id", ""))
    if not REQUEST_ID.fullmatch(request_id):
        raise invalid("request_id", "must be 1 to 64 letters, digits or _.:-")
    return request_id


def without_secrets(message: Answer) -> Answer:
    """Return a copy in which every field marked debug_redact is empty."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clear_secrets(copy)
    return copy


def _clear_secrets(message: Message) -> None:
    for field, value in message.ListFields():
        if field.GetOptions().debug_redact:
            message.ClearField(field.name)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else (value,):
                _clear_secrets(part)


def _digest(request: Message, pepper: bytes) -> bytes:
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return hmac.new(pepper, copy.SerializeToString(deterministic=True), hashlib.sha256).digest()


def _difference(request: Message, earlier: Message) -> str:
    now = without_secrets(request)
    for field in type(request).DESCRIPTOR.fields:
        if field.name != "request_id" and getattr(now, field.name) != getattr(earlier, field.name):
            return field.name
    secret = [field.name for field in type(request).DESCRIPTOR.fields if field.GetOptions().debug_redact]
    return secret[0] if secret else "content"
