"""What identity is put together from, for the process and for tests alike."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import grpc

from identity_svc.attempts import Attempts, Limit
from identity_svc.hashing import Hasher, hashing
from identity_svc.registry import Registry
from identity_svc.settings import Identity
from identity_svc.signing import SEALING_SETTING, SigningKeys
from identity_svc.worker import Delivery, Hub, sweep
from mandate.ledger.v1 import registry_pb2
from mesh import audit, cache, client, db, key_file
from mesh.clock import Clock, SystemClock
from mesh.outbox import Outbox
from mesh.settings import Runtime, SettingsError
from mesh.tls import Certificates

SERVICE = "identity"
# The hub, both outboxes, a caller's flush, signing keys, the sweep: none can keep another from the database.
LOOP_CONNECTIONS = 6


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that serves identity's RPCs, and its loops."""

    db: db.Database
    clock: Clock
    hasher: Hasher
    attempts: Attempts
    keys: SigningKeys
    hub: Hub
    delivery: Delivery
    session_life: timedelta
    pepper: bytes
    workers: tuple[Callable[[], Awaitable[None]], ...]


@asynccontextmanager
async def assembled(runtime: Runtime, settings: Identity, clock: Clock | None = None) -> AsyncGenerator[Parts]:
    """Open what identity needs and close it at the end; the loops are the caller's to run."""
    clock = clock or SystemClock()
    sealing_key = key_file.read(settings.sealing_key_path(runtime), setting=SEALING_SETTING)
    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(db.connect(settings.database_url, service=SERVICE))
        loops = await stack.enter_async_context(
            db.connect(settings.database_url, service=SERVICE, size_max=LOOP_CONNECTIONS)
        )
        redis = await stack.enter_async_context(cache.connect(runtime.redis_url))
        hasher = await stack.enter_async_context(
            hashing(settings.argon2_memory_kib, settings.argon2_passes, settings.argon2_lanes)
        )
        channel = await stack.enter_async_context(client.connected(_ledger(runtime)))
        ledger = Registry(channel)
        keys, hub = SigningKeys(loops, ledger, clock, sealing_key), Hub(loops)
        await keys.open()
        await hub.open()
        outbox = Outbox(loops, SERVICE, ledger.put_nodes)
        yield Parts(
            db=calls,
            clock=clock,
            hasher=hasher,
            attempts=Attempts(redis, Limit(settings.log_in_failures_max, settings.log_in_window_seconds * 1000)),
            keys=keys,
            hub=hub,
            delivery=Delivery(outbox),
            session_life=timedelta(hours=settings.session_hours),
            pepper=hmac.digest(sealing_key, b"identity requests", hashlib.sha256),
            workers=(
                hub.run,
                outbox.run,
                audit.delivery(loops, SERVICE, channel),
                keys.run,
                partial(sweep, loops, clock),
            ),
        )


def _ledger(runtime: Runtime) -> grpc.aio.Channel:
    if not runtime.ledger_address:
        raise SettingsError("MANDATE_LEDGER_ADDRESS", "must be set")
    services = (*registry_pb2.DESCRIPTOR.services_by_name.values(), audit.SERVICE)
    return client.connect("ledger", runtime.ledger_address, Certificates(runtime.tls, SERVICE), services)
