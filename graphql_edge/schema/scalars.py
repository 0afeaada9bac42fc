"""Scalars of the schema: money as text, so that no client rounds it; and protobuf times as `datetime`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NewType

import strawberry
from google.protobuf.timestamp_pb2 import Timestamp
from graphql import GraphQLError

from graphql_edge.schema.errors import invalid

Micros = NewType("Micros", int)
Int64 = NewType("Int64", int)
INTEGER = re.compile(r"^-?[0-9]{1,19}$")
INT64_MAX = 2**63 - 1


def parse_whole(value: object) -> int:
    """Read an integer of 64 bits from text, or from a JSON integer."""
    if isinstance(value, str) and INTEGER.match(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > INT64_MAX:
        message = 'must be a whole number of 64 bits as text, such as "1500000"'
        raise GraphQLError(message)
    return value


MICROS = strawberry.scalar(
    name="Micros",
    description="Micro-credits as the text of a whole number: 1 credit is 1,000,000.",
    serialize=str,
    parse_value=parse_whole,
)
INT64 = strawberry.scalar(
    name="Int64", description="A whole number of 64 bits as text.", serialize=str, parse_value=parse_whole
)


def time_of(stamp: Timestamp) -> datetime:
    """Return a time that is always there."""
    return stamp.ToDatetime(tzinfo=UTC)


def optional_time(stamp: Timestamp) -> datetime | None:
    """Return a time, None where the field is absent."""
    return time_of(stamp) if stamp.seconds or stamp.nanos else None


def stamp_of(field: str, time: datetime) -> Timestamp:
    """Pack a time, UTC where it names no zone; INVALID_FIELD outside the years 1 to 9999."""
    stamp = Timestamp()
    try:
        stamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (OverflowError, ValueError):
        raise invalid(field, "must be a time of the years 1 to 9999, in UTC too") from None
    return stamp
