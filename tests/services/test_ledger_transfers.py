from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_svc.store import wallets
from ledger_svc.store.wallets import CHAIN_FAILED, DIFFERS, POSTED, SHORT, NewTransfer
from mandate.ledger.v1 import wallets_pb2 as pb
from mandate.ledger.v1 import wallets_pb2_grpc as rpc
from mesh import client, ids
from mesh.errors import InvalidArgument, NotFound, PermissionDenied
from tests.conftest import RunningLedger
from tests.services.ledger_running import Tenant, check_books, owner, tenant


def transfer(key: str, amount: int, *, linked: bool = False) -> NewTransfer:
    """Return an adjustment of the wallet, up or down."""
    debit, credit = ("adjustments", "wallet") if amount > 0 else ("wallet", "adjustments")
    return NewTransfer(key, "adjustment", debit, credit, abs(amount), "test", linked)


async def post(spender: Tenant, *transfers: NewTransfer) -> list[int]:
    posted, _ = await wallets.post_batch(spender.ledger.database, spender.organization, transfers, "test")
    return [done.status for done in posted]


async def call(ledger: RunningLedger, request: pb.PostTransfersRequest, service: str = "operator") -> Any:
    services = pb.DESCRIPTOR.services_by_name.values()
    async with ledger.house.channel("ledger", ledger.address, as_service=service, services=services) as channel:
        return await client.call(rpc.WalletServiceStub(channel).PostTransfers, request)


async def test_transfers_are_posted_in_order_against_the_wallets_floor(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100)
    outcome = await post(spender, transfer("a", -60), transfer("b", -60), transfer("c", 30), transfer("d", -70))
    assert outcome == [POSTED, SHORT, POSTED, POSTED]
    assert await spender.wallet() == (0, 0)


async def test_linked_transfers_share_their_fate(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100)
    outcome = await post(
        spender,
        transfer("a", -50, linked=True),
        transfer("b", -60),
        transfer("c", -90, linked=True),
        transfer("d", -10),
    )
    assert outcome == [CHAIN_FAILED, SHORT, POSTED, POSTED]
    assert await spender.wallet() == (0, 0)


async def test_a_repeat_posts_nothing_and_another_transfer_under_its_key_names_the_field(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100)
    assert await post(spender, transfer("a", -10)) == [POSTED]
    posted, balance = await wallets.post_batch(
        ledger.database, spender.organization, [transfer("a", -10), transfer("b", -20)], "test"
    )
    assert ([done.replayed for done in posted], balance) == ([True, False], 70)
    for other, field in (
        (transfer("a", -11), "amount_micros"),
        (transfer("a", 10), "debit_account"),
        (NewTransfer("a", "write_off", "wallet", "adjustments", 10, "test", False), "kind"),
        (NewTransfer("a", "adjustment", "wallet", "receivable", 10, "test", False), "credit_account"),
        (NewTransfer("a", "adjustment", "wallet", "adjustments", 10, "other", False), "reason"),
    ):
        posted, _ = await wallets.post_batch(ledger.database, spender.organization, [other], "test")
        assert (posted[0].status, posted[0].field) == (DIFFERS, field)
    assert await spender.wallet() == (70, 0)


moves = st.lists(st.tuples(st.integers(-40, 40).filter(bool), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(moves=moves, cut=st.integers(0, 12))
async def test_a_batch_is_what_its_chains_are_one_by_one(
    ledger: RunningLedger, moves: list[tuple[int, bool]], cut: int
) -> None:
    moves[-1] = (moves[-1][0], False)
    batch = [transfer(f"k{number}", amount, linked=linked) for number, (amount, linked) in enumerate(moves)]
    whole, parts = await tenant(ledger, 50), await tenant(ledger, 50)
    chains: list[list[NewTransfer]] = [[]]
    for new in batch:
        chains[-1].append(new)
        if not new.linked:
            chains.append([])
    chains = [found for found in chains if found]
    first, second = list(chain(*chains[:cut])), list(chain(*chains[cut:]))
    split = [status for part in (first, second) if part for status in await post(parts, *part)]
    assert await post(whole, *batch) == split
    assert await whole.wallet() == await parts.wallet()
    async with owner(ledger.house) as connection:
        await check_books(connection, whole.organization)


GOOD = pb.NewTransfer(
    request_id="k1",
    kind="adjustment",
    debit_account="wallet",
    credit_account="adjustments",
    amount_micros=1,
    reason="r",
)


def changed(**fields: Any) -> pb.NewTransfer:
    message = pb.NewTransfer()
    message.CopyFrom(GOOD)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("transfers", "field"),
    [
        ([], "transfers"),
        ([GOOD] * 1_001, "transfers"),
        ([GOOD, GOOD], "transfers.request_id"),
        ([changed(request_id="")], "transfers.request_id"),
        ([changed(kind="gift")], "transfers.kind"),
        ([changed(debit_account="purse")], "transfers.debit_account"),
        ([changed(credit_account="wallet")], "transfers.credit_account"),
        ([changed(amount_micros=0)], "transfers.amount_micros"),
        ([changed(reason=" ")], "transfers.reason"),
        ([changed(linked=True)], "transfers.linked"),
    ],
)
async def test_a_bad_field_of_a_transfer_is_named(
    ledger: RunningLedger, transfers: list[pb.NewTransfer], field: str
) -> None:
    spender = await tenant(ledger, 100)
    with pytest.raises(InvalidArgument) as refused:
        await call(ledger, pb.PostTransfersRequest(organization_id=spender.organization, transfers=transfers))
    assert refused.value.details["field"] == field
    assert await spender.wallet() == (100, 0)


async def test_a_debt_is_kept_beside_the_wallet_and_paid_from_it(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 30)
    request = pb.PostTransfersRequest(
        organization_id=spender.organization,
        transfers=[
            changed(request_id="back", kind="reversal", credit_account="purchases", amount_micros=30, linked=True),
            changed(
                request_id="owed",
                kind="reversal",
                debit_account="receivable",
                credit_account="purchases",
                amount_micros=70,
            ),
        ],
    )
    answers = await call(ledger, request)
    assert [answer.WhichOneof("outcome") for answer in answers.transfers] == ["posted", "posted"]
    assert answers.balance_micros == 0
    owed = await ledger.database.value(
        "SELECT (balance_of(id)).settled FROM accounts WHERE organization_id = $1 AND kind = 'receivable'",
        spender.organization,
    )
    assert owed == -70
    short = await call(
        ledger,
        pb.PostTransfersRequest(
            organization_id=spender.organization,
            transfers=[changed(request_id="pay", kind="repayment", credit_account="receivable", amount_micros=70)],
        ),
    )
    assert short.transfers[0].fault.reason == "BALANCE_SHORT"


async def test_transfers_are_the_operators_and_of_an_organization_that_is_there(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1)
    with pytest.raises(PermissionDenied):
        await call(ledger, pb.PostTransfersRequest(organization_id=spender.organization, transfers=[GOOD]), "edge")
    with pytest.raises(NotFound):
        await call(ledger, pb.PostTransfersRequest(organization_id=ids.new(ids.Kind.ORGANIZATION), transfers=[GOOD]))
