from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

import pytest

from gateway_svc import charging
from gateway_svc.holds import Place, Route
from ledger_svc.commits import Commits
from ledger_svc.keys import LedgerKeys
from ledger_svc.price_book import PriceBook
from ledger_svc.service import Ledger
from ledger_svc.store import wallets
from mesh import db, ids
from mesh.errors import Unavailable
from mesh.secret import Secret
from tests.conftest import RunningLedger
from tests.fakes.cable import cable

WARM = 3  # holds until either connection takes one with a single round trip: books are read for the second


def place_of(agent_id: str) -> Place:
    return Place(
        request_id=ids.new(ids.Kind.REQUEST),
        agent_id=agent_id,
        path_version=4,
        api_key_id="",
        routes=(Route("mock", "mock-flat"),),
        input_tokens_max=10,
        output_tokens_wanted=16,
        output_tokens_min=16,
        choices=1,
    )


async def until(condition: str, database: db.Database, *values: object) -> None:
    """Wait until a query answers true."""
    for _ in range(200):
        if await database.value(condition, *values):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"never came true: {condition}")


async def test_a_hold_whose_commit_was_never_heard_of_is_given_back(ledger: RunningLedger) -> None:
    organization_id, *_, agent_id = await ledger.tenant(5_000_000)
    dsn = urlsplit(ledger.house.dsn("ledger").reveal())
    async with cable(f"{dsn.hostname}:{dsn.port}") as line:
        credentials = dsn.netloc.rpartition("@")[0]
        through = Secret(urlunsplit(dsn._replace(netloc=f"{credentials}@{line.address}")))
        async with db.connect(through, service="ledger", size_max=2) as database:
            prices = PriceBook(database)
            await prices.refresh()
            built = Ledger(database, Commits(database), prices)
            keys = LedgerKeys(database)
            async with (
                ledger.house.serving("ledger", built.registrations(), keys, built.resolve) as address,
                ledger.house.channel("ledger", address, as_service="gateway") as channel,
            ):
                holder = charging.Ledger(channel)
                running = asyncio.create_task(holder.run())
                for _ in range(WARM - 1):
                    await holder.hold(place_of(agent_id))
                async with database.connection():
                    await holder.hold(place_of(agent_id))
                place = place_of(agent_id)
                line.mute()
                asking = asyncio.create_task(holder.hold(place))
                await until(
                    "SELECT EXISTS (SELECT FROM holds WHERE request_id = $1)", ledger.database, place.request_id
                )
                line.cut()
                with pytest.raises(Unavailable):
                    await asking
                gone = "SELECT NOT EXISTS (SELECT FROM open_holds WHERE request_id = $1)"
                await until(gone, ledger.database, place.request_id)
                running.cancel()
    balance = await wallets.balance(ledger.database, organization_id)
    assert (balance.settled_micros, balance.held_micros) == (5_000_000, WARM * 1_000_000)
