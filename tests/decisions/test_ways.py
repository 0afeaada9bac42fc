from __future__ import annotations

import orjson
import pytest

from gateway_svc.bounds import Model
from gateway_svc.dialects import Dialect, Request, chat
from gateway_svc.ways import ways
from mesh.errors import InvalidArgument

SMALL = Model("openai", "small", 1_000, 100)
LARGE = Model("openai", "large", 100_000, 100)
UNPRICED = Model("openai", "unpriced", 1_000, 100, longer_unpriced=True)


def of_bytes(number: int) -> Request:
    return chat.parse(orjson.dumps({"model": "any", "messages": [{"role": "user", "content": "x" * number}]}))


def names(request: Request, *models: Model) -> list[str]:
    return [way.model.name for way in ways(request, models, lambda _: frozenset({Dialect.CHAT}))]


@pytest.mark.parametrize(
    ("number", "models", "found"),
    [
        (10, (SMALL, LARGE), ["small", "large"]),
        (10_000, (SMALL, LARGE), ["large"]),
        (10_000, (SMALL,), ["small"]),
        (200_000, (SMALL, LARGE), ["small", "large"]),
        (10_000, (UNPRICED, SMALL), ["small"]),
    ],
)
def test_what_a_model_may_refuse_as_too_long_goes_there_where_none_is_sure_to_take_it(
    number: int, models: tuple[Model, ...], found: list[str]
) -> None:
    assert names(of_bytes(number), *models) == found


def test_what_no_model_has_a_price_for_goes_nowhere() -> None:
    with pytest.raises(InvalidArgument) as raised:
        names(of_bytes(10_000), UNPRICED)
    assert raised.value.reason == "CONTEXT_LENGTH_EXCEEDED"
