from __future__ import annotations

from typing import Any

import pytest

from ledger_svc.service.intake import DIALECTS, USAGE_SOURCES
from ledger_svc.store import wallets
from mandate.ledger.v1 import charges_pb2 as pb
from mesh import ids
from mesh.client import call
from tests.conftest import RunningLedger
from tests.services.ledger_processes import charge
from tests.services.ledger_running import FLAT_MICROS, Tenant, tenant
from tests.services.test_ledger_stream import hold, settle
from tests.services.test_ledger_unary import charging

TOLD: dict[str, Any] = {"usage_source": "above_bound", "attempts": 3, "dialect": "messages"}
UNTOLD: dict[str, Any] = {"usage_source": "", "attempts": 0, "dialect": ""}


async def record(ledger: RunningLedger, organization: str) -> dict[str, Any]:
    """Return what the newest usage row says beside its figures."""
    row, *_ = await wallets.usage(ledger.database, organization, None, 1)
    return {name: row[name] for name in TOLD}


async def settled(ledger: RunningLedger, spender: Tenant, settles: list[pb.SettleHold]) -> list[pb.SettleAnswer]:
    """Hold each once, settle them all in one message."""
    keys = dict.fromkeys(one.request_id for one in settles)
    async with charging(ledger) as stub:
        holds = [hold(key, spender.path[-1]) for key in keys]
        await call(stub.PlaceHolds, pb.PlaceHoldsRequest(holder_id=ids.new(ids.Kind.HOLDER), holds=holds))
        return list((await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=settles))).settles)


@pytest.mark.parametrize(
    "told",
    [
        UNTOLD,
        TOLD,
        *({"usage_source": source} for source in sorted(USAGE_SOURCES)),
        *({"dialect": dialect} for dialect in sorted(DIALECTS)),
        {"attempts": 100},
    ],
)
async def test_a_settle_is_recorded_as_it_was_told(ledger: RunningLedger, told: dict[str, Any]) -> None:
    spender = await tenant(ledger, FLAT_MICROS)
    (answer,) = await settled(ledger, spender, [settle("a", spender.path[-1], **told)])
    assert answer.HasField("settled")
    assert await record(ledger, spender.organization) == UNTOLD | told


async def test_a_settle_above_its_hold_is_recorded_like_any_other(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 2 * FLAT_MICROS)
    await spender.place("a", 1)
    over = pb.SettleHold(request_id="a", agent_id=spender.path[-1], outcome="ok", **TOLD)
    over.usage.output_tokens = 5
    async with charging(ledger) as stub:
        await call(stub.SettleHolds, pb.SettleHoldsRequest(settles=[over]))
    assert await record(ledger, spender.organization) == TOLD


@pytest.mark.parametrize("credits_flat", [5, 1])  # decided by sums, and one by one
async def test_a_charge_that_has_its_price_asked_no_provider(ledger: RunningLedger, credits_flat: int) -> None:
    spender = await tenant(ledger, credits_flat * FLAT_MICROS)
    charges = [charge(key, spender.path[-1], amount_micros=FLAT_MICROS) for key in "ab"]
    async with charging(ledger) as stub:
        await call(stub.PostCharges, pb.PostChargesRequest(charges=charges))
    assert await record(ledger, spender.organization) == UNTOLD


@pytest.mark.parametrize(
    "bad",
    [
        {"usage_source": "guessed"},
        {"usage_source": "Reported"},
        {"dialect": "chat"},
        {"dialect": "messages\x00"},
        {"attempts": -1},
        {"attempts": 101},
    ],
)
async def test_a_record_in_other_words_is_refused_by_its_field(ledger: RunningLedger, bad: dict[str, Any]) -> None:
    spender = await tenant(ledger, 2 * FLAT_MICROS)
    agent = spender.path[-1]
    refused, good = await settled(ledger, spender, [settle("a", agent, **bad), settle("b", agent)])
    assert (refused.fault.reason, refused.fault.metadata["field"]) == ("INVALID_FIELD", next(iter(bad)))
    assert good.HasField("settled")


@pytest.mark.parametrize("changes", [{"usage_source": "zero"}, {"attempts": 4}, {"dialect": "responses"}])
async def test_a_settle_that_comes_again_with_another_record_is_another_settle(
    ledger: RunningLedger, changes: dict[str, Any]
) -> None:
    spender = await tenant(ledger, FLAT_MICROS)
    first = settle("a", spender.path[-1], **TOLD)
    again = settle("a", spender.path[-1], **(TOLD | changes))
    answers = await settled(ledger, spender, [first, again, first])
    assert answers[1].fault.metadata["field"] == next(iter(changes))
    assert answers[2].settled.replayed
