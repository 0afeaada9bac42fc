"""Answers to HTTP clients: JSON objects, and whole bodies that a slow reader gets piece by piece, within a time."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway_svc.dialects.reading import JsonObject

WRITE_SECONDS_MAX = 60  # a piece of a stream, or all of another answer
PIECE_BYTES = 64 * 1024


def json_response(document: JsonObject, status: int = 200) -> web.Response:
    """Return a JSON object with its status."""
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")


async def send(request: web.Request, response: web.StreamResponse, body: bytes) -> None:
    """Send a response whose body is known; of it no more than two pieces wait in the connection's buffer."""
    response.content_length = len(body)
    await response.prepare(request)
    for start in range(0, len(body), PIECE_BYTES):
        await response.write(body[start : start + PIECE_BYTES])
    await response.write_eof()
