"""`GET /v1/models`: what the caller's key may ask for, in OpenAI's shape or, for its clients, in Anthropic's."""

from __future__ import annotations

from gateway_svc.admission import Admission
from gateway_svc.bounds import Model
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.http.answers import Response, json_response
from gateway_svc.http.completions import key_of
from gateway_svc.http.errors import is_anthropics
from gateway_svc.http.requests import Request
from mesh.errors import NotFound

CREATED = 1_750_000_000  # price lists know no day of birth; clients demand a number
CREATED_AT = "1970-01-01T00:00:00Z"  # what Anthropic tells of models whose day is not known


class Models:
    """Lists models and shows one."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def list(self, request: Request) -> Response:
        named = await self._admission.models(key_of(request))
        if is_anthropics(request):
            shown = [_message_model(name, model) for name, model in named]
            ends: JsonObject = {"first_id": None, "last_id": None}
            if named:
                ends = {"first_id": named[0][0], "last_id": named[-1][0]}
            return json_response({"data": list(shown), "has_more": False, **ends})
        return json_response({"object": "list", "data": [_shown(name, model) for name, model in named]})

    async def get(self, request: Request) -> Response:
        wanted = request.tail
        for name, model in await self._admission.models(key_of(request)):
            if name == wanted:
                return json_response((_message_model if is_anthropics(request) else _shown)(name, model))
        raise NotFound("MODEL_NOT_FOUND", f"there is no model {wanted[:200]!r}", field="model")


def _shown(name: str, model: Model) -> JsonObject:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": model.provider,
        "context_window": model.context_tokens,
        "max_output_tokens": model.output_tokens_max,
    }


def _message_model(name: str, model: Model) -> JsonObject:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": CREATED_AT,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.output_tokens_max,
    }
