"""The ways in which a request may go upstream: a model, and the request in a dialect of its provider's. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway_svc.bounds import PROMPT_FIELDS, Model, input_bound, may_be_refused
from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.dialects.registry import size_of
from gateway_svc.translations import Translation
from gateway_svc.translations.registry import between
from mesh.errors import InvalidArgument

HUB = Dialect.CHAT


@dataclass(frozen=True, slots=True)
class Far:
    """A request in a provider's dialect."""

    request: Request
    size: Size
    translation: Translation | None  # None: it is the client's own


@dataclass(frozen=True, slots=True)
class Way:
    """One model, and the request as its provider takes it."""

    model: Model
    far: Far


def ways(request: Request, models: Iterable[Model], speaks: Callable[[Model], frozenset[Dialect]]) -> tuple[Way, ...]:
    """Return the ways that there are, in the order of the models; the first one's error when there is none."""
    by_dialect: dict[Dialect, Far] = {}
    found: list[Way] = []
    refused: InvalidArgument | None = None
    for model in models:
        try:
            dialect = _dialect(request.dialect, model, speaks(model))
            if dialect not in by_dialect:
                by_dialect[dialect] = _far(request, dialect)
            input_bound(by_dialect[dialect].size, model, PROMPT_FIELDS[request.dialect])  # raises where there is none
        except InvalidArgument as error:
            refused = refused or error
            continue
        found.append(Way(model, by_dialect[dialect]))
    if not found and refused is not None:
        raise refused
    # A refusal as too long would be the last word: such a model is asked only where none is sure to take it.
    sure = [way for way in found if not may_be_refused(way.far.size, way.model)]
    return tuple(sure or found)


def _dialect(near: Dialect, model: Model, spoken: frozenset[Dialect]) -> Dialect:
    """Choose the client's own dialect, else one that it can be carried into."""
    if near in spoken:
        return near
    for far in (HUB, Dialect.MESSAGES):
        if far in spoken and between(near, far) is not None:
            return far
    raise InvalidArgument("UNSUPPORTED_ENDPOINT", f"{model.name} cannot be asked for {near}", field="model")


def _far(request: Request, dialect: Dialect) -> Far:
    translation = between(request.dialect, dialect)
    far = request if translation is None else translation.request(request)
    return Far(far, size_of(far), translation)
