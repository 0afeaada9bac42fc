from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc.dialects import Dialect
from gateway_svc.dialects.fields import FOREIGN
from gateway_svc.dialects.registry import parse
from mesh.errors import InvalidArgument

SAID: list[Any] = [{"role": "user", "content": "hi"}]
BODIES: dict[Dialect, dict[str, Any]] = {
    Dialect.CHAT: {"model": "m", "messages": SAID},
    Dialect.RESPONSES: {"model": "m", "input": "hi"},
    Dialect.MESSAGES: {"model": "m", "max_tokens": 9, "messages": SAID},
    Dialect.EMBEDDINGS: {"model": "m", "input": "hi"},
}


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    "name",
    [
        *("models", "fallbacks", "preset", "compound_custom", "safety_model", "provider", "api_base", "plugins"),
        *("num_return_sequences", "num_outputs", "num_samples", "samples", "best_of", "ignore_eos", "min_tokens"),
        *("max_new_tokens", "max_length", "thinking_budget", "search_settings", "kv_transfer_params", "num_retries"),
    ],
)
def test_what_compatible_servers_charge_beside_our_limit_is_refused_by_name(dialect: Dialect, name: str) -> None:
    assert name in FOREIGN
    with pytest.raises(InvalidArgument) as caught:
        parse(dialect, orjson.dumps({**BODIES[dialect], name: 2}))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNPRICED_FIELD", name)


@pytest.mark.parametrize("dialect", [Dialect.MESSAGES, Dialect.RESPONSES])
@pytest.mark.parametrize("name", ["n", "max_completion_tokens"])
def test_what_multiplies_answers_in_chat_is_refused_elsewhere(dialect: Dialect, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(dialect, orjson.dumps({**BODIES[dialect], name: 5}))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNPRICED_FIELD", name)
