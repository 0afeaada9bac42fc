"""Health, version and metrics: which part this gateway waits for, if any."""

from __future__ import annotations

import asyncio
from importlib import metadata

from aiohttp import web

from gateway_svc.catalog import Catalog
from gateway_svc.charging import Ledger
from gateway_svc.chat import JsonObject
from gateway_svc.http.answers import json_response
from gateway_svc.rates import Rates
from gateway_svc.rules import Rules
from gateway_svc.who import Directory
from mesh.db import Database
from mesh.errors import MeshError
from mesh.telemetry import metrics

CHECK_SECONDS_MAX = 1.0
UNAVAILABLE = 503


class Health:
    """What this gateway stands on."""

    def __init__(
        self, directory: Directory, rules: Rules, ledger: Ledger, catalog: Catalog, rates: Rates, db: Database
    ) -> None:
        self._directory = directory
        self._rules = rules
        self._ledger = ledger
        self._catalog = catalog
        self._rates = rates
        self._db = db

    async def live(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        database, valkey = await asyncio.gather(self._database(), self._valkey())
        checks = {
            "identity": self._directory.fresh,
            "policies": self._rules.fresh,
            "ledger": self._ledger.leased and self._catalog.loaded,
            "valkey": valkey,
            "database": database,
        }
        down: JsonObject = {name: "ok" if well else "down" for name, well in checks.items()}
        ready = all(checks.values())
        answer: JsonObject = {"status": "ready" if ready else "not ready", "checks": down}
        return json_response(answer, 200 if ready else UNAVAILABLE)

    async def version(self, _request: web.Request) -> web.Response:
        return json_response({"name": "mandate", "service": "gateway", "version": metadata.version("mandate")})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _database(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._db.value("SELECT 1") == 1
        except (MeshError, TimeoutError):
            return False

    async def _valkey(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._rates.ping()
        except TimeoutError:
            return False
