"""`GET /v1/models`: the models that the caller's key may ask for."""

from __future__ import annotations

from aiohttp import web

from gateway_svc.admission import Admission
from gateway_svc.bounds import Model
from gateway_svc.chat import JsonObject
from gateway_svc.http.answers import json_response
from gateway_svc.http.completions import key_of
from mesh.errors import NotFound

CREATED = 1_750_000_000  # price lists know no day of birth; clients demand a number


class Models:
    """Lists models and shows one."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def list(self, request: web.Request) -> web.Response:
        models = await self._admission.models(key_of(request))
        return json_response({"object": "list", "data": [_shown(model) for model in models]})

    async def get(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        for model in await self._admission.models(key_of(request)):
            if model.name == name:
                return json_response(_shown(model))
        raise NotFound("MODEL_NOT_FOUND", f"there is no model {name[:200]!r}", field="model")


def _shown(model: Model) -> JsonObject:
    return {
        "id": model.name,
        "object": "model",
        "created": CREATED,
        "owned_by": model.provider,
        "context_window": model.context_tokens,
        "max_output_tokens": model.output_tokens_max,
    }
