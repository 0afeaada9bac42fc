"""What a translation says of a field that the other dialect has no place for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway_svc.dialects.reading import Json, JsonObject
from mesh.errors import InvalidArgument


def untranslatable(field: str, why: str = "this model's provider has no place for it") -> InvalidArgument:
    """Return the error of a field that would have to be dropped."""
    return InvalidArgument("UNTRANSLATABLE_FIELD", f"{field}: {why}", field=field)


def refuse_others(
    owner: JsonObject, known: Collection[str], neutral: Mapping[str, tuple[Json, ...]] | None = None, prefix: str = ""
) -> None:
    """Refuse members that nobody translates; null says nothing, and neither do the values called neutral."""
    for name, value in owner.items():
        if value is None or name in known:
            continue
        if neutral is None or value not in neutral.get(name, ()):
            raise untranslatable(f"{prefix}{name}")
