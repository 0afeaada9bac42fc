from __future__ import annotations

import asyncio

from mandate.identity.v1 import keys_pb2
from mesh.clock import monotonic_ms
from mesh.testing import House
from tests.fakes.ledger import FakeLedger
from tests.services.identity_running import identity_running


async def test_a_creation_outlives_a_ledger_that_is_away(house: House) -> None:
    ledger = FakeLedger()
    async with ledger.serving(house), identity_running(house, ledger=ledger) as identity:
        session = await identity.sign_up()
    async with identity_running(house, ledger=ledger) as identity:  # a key signs already; nobody answers at the ledger
        organization = await identity.organization(session)
        assert organization.id not in identity.ledger.paths()
        async with ledger.serving(house):
            await ledger.told(organization.id)


async def test_a_ledger_that_hangs_holds_up_a_creation_for_two_seconds_and_nothing_else(house: House) -> None:
    async with identity_running(house) as identity:
        sessions = [await identity.sign_up() for _ in range(20)]
        identity.ledger.awake.clear()
        began_ms = monotonic_ms()
        creations = asyncio.gather(*(identity.organization(session) for session in sessions))
        await asyncio.sleep(0.5)
        stream = identity.gateway_keys.Watch(keys_pb2.WatchRequest())
        beats = [await stream.read() for _ in range(4)]
        stream.cancel()
        assert not creations.done()
        made = await creations
        assert monotonic_ms() - began_ms < 4_500
        assert all(isinstance(beat, keys_pb2.WatchResponse) for beat in beats)
        identity.ledger.awake.set()
        await identity.ledger.told(*(organization.id for organization in made))
