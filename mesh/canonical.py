"""JSON in one form alone, so that equal values have equal bytes and equal hashes: RFC 8785 for what the mesh writes.

Keys are sorted ASCII, there is no space, and numbers are whole and within ±(2^53 - 1), so that every reader reads them
alike. Fractions, duplicate keys, NUL and lone surrogates are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

WHOLE_MAX = 2**53 - 1
DEPTH_MAX = 8


class NotCanonical(ValueError):
    """The value has no canonical form; the text says why."""


def dumps(value: object) -> str:
    """Return the one text of a value; NotCanonical when it has none."""
    _check(value, DEPTH_MAX)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)


def loads(text: str) -> Any:
    """Read any JSON whose value has a canonical form; NotCanonical when it has none or is no JSON."""
    try:
        value = json.loads(text, parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_object)
    except RecursionError:
        raise NotCanonical(f"is nested deeper than {DEPTH_MAX}") from None
    except NotCanonical:
        raise
    except ValueError:
        raise NotCanonical("is not JSON") from None
    _check(value, DEPTH_MAX)
    return value


def _check(value: object, depth: int) -> None:
    if depth < 0:
        raise NotCanonical(f"is nested deeper than {DEPTH_MAX}")
    match value:
        case None | bool():
            return
        case str():
            _check_text(value)
        case int():
            if not -WHOLE_MAX <= value <= WHOLE_MAX:
                raise NotCanonical(f"holds a number beyond {WHOLE_MAX}")
        case Mapping():
            _check_keys(value)
            _check_all(value.values(), depth - 1)
        case list() | tuple():
            _check_all(value, depth - 1)
        case _:
            raise NotCanonical(f"holds a {type(value).__name__}")


def _check_all(values: Iterable[object], depth: int) -> None:
    for value in values:
        _check(value, depth)


def _check_keys(keys: Iterable[object]) -> None:
    if not all(isinstance(key, str) and key.isascii() and key.isprintable() for key in keys):
        raise NotCanonical("has a key that is not plain ASCII")


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise NotCanonical("holds a NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotCanonical("holds half of a surrogate pair") from None


def _no_float(_text: str) -> Any:
    raise NotCanonical("holds a number that is not whole")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotCanonical("has a key twice")
    return found
