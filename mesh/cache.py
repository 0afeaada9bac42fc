"""Redis or Valkey: rate limits, caches, push. Never the source of truth."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mesh.secret import Secret
from mesh.settings import SettingsError

OUTAGES = (RedisConnectionError, RedisTimeoutError, OSError)
REPLY_SECONDS_MAX = 2


@asynccontextmanager
async def connect(url: Secret | None) -> AsyncGenerator[Redis]:
    """Open a client; it connects when first used and again after an outage."""
    if url is None:
        raise SettingsError("MANDATE_REDIS_URL", "must be set")
    client = Redis.from_url(
        url.reveal(),
        decode_responses=True,
        protocol=3,
        socket_timeout=REPLY_SECONDS_MAX,
        socket_connect_timeout=REPLY_SECONDS_MAX,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
    )
    try:
        yield client
    finally:
        await client.aclose()
