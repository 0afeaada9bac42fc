"""JSON objects as HTTP answers."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway_svc.dialects.reading import JsonObject


def json_response(document: JsonObject, status: int = 200) -> web.Response:
    """Return a JSON object with its status."""
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")
