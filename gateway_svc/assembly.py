"""The gateway put together from its parts; what starts and stops it is in `__main__` and in the tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway_svc.admission import Admission
from gateway_svc.aliases import Aliases
from gateway_svc.catalog import Catalog
from gateway_svc.channels import Channels
from gateway_svc.charging import Ledger
from gateway_svc.credentials import Credential, Credentials
from gateway_svc.flow import Completions
from gateway_svc.http.app import Endpoints, HttpServer, application
from gateway_svc.http.completions import Endpoint
from gateway_svc.http.health import Health
from gateway_svc.http.models import Models
from gateway_svc.providers import Provider
from gateway_svc.providers.anthropic import Anthropic
from gateway_svc.providers.mock import Mock
from gateway_svc.providers.openai import OpenAI
from gateway_svc.providers.upstream import Upstream
from gateway_svc.rates import Rates
from gateway_svc.rules import Rules
from gateway_svc.settings import Settings
from gateway_svc.who import Directory
from mesh import audit, cache, db
from mesh.clock import SystemClock
from mesh.db import Database
from mesh.settings import Runtime

DRAIN_LEDGER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway, not yet started."""

    db: Database
    directory: Directory
    ledger: Ledger
    catalog: Catalog
    aliases: Aliases
    http: HttpServer
    deliver: Callable[[], Awaitable[None]]

    @property
    def workers(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return the loops that keep it going."""
        return (self.directory.run, self.ledger.run, self.catalog.run, self.aliases.run, self.http.run, self.deliver)

    async def drain(self) -> None:
        """Finish what is open: completions first, then what the ledger has not answered."""
        await self.http.drain()
        await self.ledger.drain(DRAIN_LEDGER_SECONDS)


@asynccontextmanager
async def gateway(runtime: Runtime, settings: Settings, channels: Channels) -> AsyncGenerator[Gateway]:
    """Build a gateway; its connections are closed at the end of the block."""
    async with (
        db.connect(settings.database_url, service="gateway") as database,
        cache.connect(runtime.redis_url) as redis,
        _providers(settings) as providers,
    ):
        directory, catalog = Directory(channels.identity, SystemClock()), Catalog(channels.ledger)
        ledger, rates = Ledger(channels.ledger), Rates(redis)
        admission = Admission(directory, Rules(database), rates, catalog)
        completions = Completions(admission, ledger, Credentials(channels.vault, _platform(settings)), providers)
        instance = f"gateway-{runtime.replica}"
        endpoints = Endpoints(
            Endpoint(completions, settings.in_flight_max, instance),
            Models(admission),
            Health(directory, ledger, catalog, rates, database),
        )
        app = application(endpoints, instance=instance, body_bytes_max=settings.body_bytes_max)
        deliver = audit.delivery(database, "gateway", channels.ledger)
        yield Gateway(database, directory, ledger, catalog, Aliases(database), HttpServer(app, runtime), deliver)


@asynccontextmanager
async def _providers(settings: Settings) -> AsyncGenerator[dict[str, Provider]]:
    operators = Upstream(silence_seconds_max=settings.upstream_seconds_max, public_only=False)
    tenants = Upstream(silence_seconds_max=settings.upstream_seconds_max, public_only=True)
    try:
        yield {
            "mock": Mock(settings.mock_bill_file),
            "openai": OpenAI(operators, tenants, settings.openai_base_url),
            "anthropic": Anthropic(operators, tenants, settings.anthropic_base_url),
        }
    finally:
        await operators.close()
        await tenants.close()


def _platform(settings: Settings) -> dict[str, Credential]:
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    return {provider: Credential(key, "", own=False) for provider, key in keys.items() if key is not None}
