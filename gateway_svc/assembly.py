"""The gateway put together from its parts; what starts and stops it is in `__main__` and in the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from gateway_svc.admission import Admission
from gateway_svc.attempts import Attempts
from gateway_svc.channels import Channels
from gateway_svc.choices import Choices
from gateway_svc.credentials import Credential, Credentials
from gateway_svc.flow import Completions
from gateway_svc.http.app import Application, Endpoints, HttpServer
from gateway_svc.http.completions import Endpoint
from gateway_svc.http.health import Health
from gateway_svc.http.models import Models
from gateway_svc.parts import Parts, parts_of
from gateway_svc.providers import Provider
from gateway_svc.providers.anthropic import Anthropic
from gateway_svc.providers.mock import Mock
from gateway_svc.providers.openai import OpenAI
from gateway_svc.providers.upstream import Room, Upstream
from gateway_svc.repeating import Repeating
from gateway_svc.repeats import Retention
from gateway_svc.replays import Limits
from gateway_svc.settings import SEALING_SETTING, Settings
from mesh import audit, cache, db, key_file
from mesh.settings import Runtime, SettingsError
from mesh.verification import IdentityKeys

DRAIN_LEDGER_SECONDS = 4.0  # a process has 5 s after its completions before it is killed
DRAIN_RATES_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway, not yet started."""

    parts: Parts
    http: HttpServer
    deliver: Callable[[], Awaitable[None]]

    @property
    def workers(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return the loops that keep it going."""
        return (*self.parts.loops, self.http.run, self.deliver)

    async def drain(self) -> None:
        """Finish what is open: completions first, then what the ledger and the database have not answered."""
        await self.http.drain()
        parts = self.parts
        await asyncio.gather(
            parts.replays.drain(), parts.ledger.drain(DRAIN_LEDGER_SECONDS), parts.rates.drain(DRAIN_RATES_SECONDS)
        )


@asynccontextmanager
async def gateway(runtime: Runtime, settings: Settings, channels: Channels) -> AsyncGenerator[Gateway]:
    """Build a gateway; its connections are closed at the end of the block."""
    replays = (key_file.read(settings.sealing_key_path(runtime), setting=SEALING_SETTING), _limits(settings))
    async with (
        db.connect(settings.database_url, service="gateway") as database,
        cache.connect(runtime.redis_url) as redis,
        _providers(settings) as providers,
        _keys(channels) as keys,
    ):
        parts = parts_of(database, redis, channels, keys, replays)
        credentials = Credentials(channels.vault, _platform(settings))
        instance = f"gateway-{runtime.replica}"
        endpoints = _endpoints(parts, credentials, providers, settings.in_flight_max, instance)
        app = Application(endpoints, instance=instance, body_bytes_max=settings.body_bytes_max)
        http = HttpServer(app, runtime, connections_max=settings.connections_max)
        yield Gateway(parts, http, audit.delivery(database, "gateway", channels.ledger))


def _endpoints(
    parts: Parts, credentials: Credentials, providers: Mapping[str, Provider], in_flight_max: int, instance: str
) -> Endpoints:
    choices = Choices(parts.catalog, parts.aliases, credentials, providers)
    admission = Admission(parts.directory, parts.rules, parts.rates, choices, parts.violations)
    completions = Completions(admission, parts.ledger, Attempts(credentials, parts.circuits))
    once = Repeating(completions, admission, parts.replays)
    return Endpoints(Endpoint(admission, completions, once, in_flight_max, instance), Models(admission), Health(parts))


@asynccontextmanager
async def _keys(channels: Channels) -> AsyncGenerator[IdentityKeys]:
    keys = IdentityKeys(channels.identity)
    try:
        yield keys
    finally:
        await keys.close()


@asynccontextmanager
async def _providers(settings: Settings) -> AsyncGenerator[dict[str, Provider]]:
    room = Room()
    operators = Upstream(silence_seconds_max=settings.upstream_seconds_max, public_only=False, room=room)
    tenants = Upstream(silence_seconds_max=settings.upstream_seconds_max, public_only=True, room=room)
    try:
        yield {
            "mock": Mock(settings.mock_bill_file),
            "openai": OpenAI(operators, tenants, settings.openai_base_url),
            "anthropic": Anthropic(operators, tenants, settings.anthropic_base_url),
        }
    finally:
        await operators.close()
        await tenants.close()


def _limits(settings: Settings) -> Limits:
    hours = timedelta(hours=settings.replay_hours)
    days = timedelta(days=settings.replay_key_days)
    if days < hours:
        raise SettingsError("MANDATE_GATEWAY_REPLAY_KEY_DAYS", "must be no shorter than MANDATE_GATEWAY_REPLAY_HOURS")
    return Limits(
        runs_max=settings.in_flight_max,
        transcript_bytes_max=settings.replay_bytes_max,
        memory_bytes_max=settings.replay_memory_bytes_max,
        kept=Retention(round(hours.total_seconds()), round(days.total_seconds())),
    )


def _platform(settings: Settings) -> dict[str, Credential]:
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    return {provider: Credential(key, "", own=False) for provider, key in keys.items() if key is not None}
