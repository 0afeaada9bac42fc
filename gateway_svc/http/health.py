"""Health, version and metrics: which part this gateway waits for, if any."""

from __future__ import annotations

import asyncio
from importlib import metadata

from gateway_svc.dialects.reading import JsonObject
from gateway_svc.http.answers import Response, json_response
from gateway_svc.http.requests import Request
from gateway_svc.parts import Parts
from mesh.errors import MeshError
from mesh.telemetry import metrics

CHECK_SECONDS_MAX = 1.0
OK, UNAVAILABLE = 200, 503


class Health:
    """What this gateway stands on."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def live(self, _request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        database, valkey = await asyncio.gather(self._database(), self._valkey())
        parts = self._parts
        checks = {
            "identity": parts.directory.fresh,
            "policies": parts.rules.fresh,
            "routes": parts.aliases.fresh,
            "ledger": parts.ledger.leased and parts.catalog.loaded,
            "valkey": valkey,
            "database": database,
        }
        down: JsonObject = {name: "ok" if well else "down" for name, well in checks.items()}
        ready = all(checks.values())
        answer: JsonObject = {"status": "ready" if ready else "not ready", "checks": down}
        return json_response(answer, OK if ready else UNAVAILABLE)

    async def version(self, _request: Request) -> Response:
        return json_response({"name": "mandate", "service": "gateway", "version": metadata.version("mandate")})

    async def metrics(self, _request: Request) -> Response:
        return Response(OK, metrics.text(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _database(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._parts.db.value("SELECT 1") == 1
        except (MeshError, TimeoutError):
            return False

    async def _valkey(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._parts.rates.ping()
        except TimeoutError:
            return False
