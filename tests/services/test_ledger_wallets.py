from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from mandate.ledger.v1 import wallets_pb2 as pb
from mandate.ledger.v1 import wallets_pb2_grpc as rpc
from mesh import caller, ids
from mesh.caller import Caller
from mesh.client import call
from mesh.errors import AlreadyExists, Exhausted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, tenant

CREDIT = 1_000_000
TOO_LATE = base64.urlsafe_b64encode(b'{"after": "9999999999999999999999"}').decode()  # no 64-bit number


@dataclass(frozen=True)
class Desk:
    """A person at the edge of one tenant."""

    spender: Tenant
    wallets: Any
    who: Caller

    @property
    def organization(self) -> str:
        return self.spender.organization

    async def ask(self, method: Any, request: Any) -> Any:
        with caller.acting(self.who):
            return await call(method, request)

    async def buy(self, key: str, micros: int, reason: str = "") -> pb.Posting:
        request = pb.PurchaseCreditsRequest(
            organization_id=self.organization, amount_micros=micros, request_id=key, reason=reason
        )
        return await self.ask(self.wallets.PurchaseCredits, request)

    async def refund(self, key: str, purchase: str, micros: int) -> pb.Posting:
        request = pb.RefundPurchaseRequest(
            organization_id=self.organization, purchase_request_id=purchase, amount_micros=micros, request_id=key
        )
        return await self.ask(self.wallets.RefundPurchase, request)

    async def resolve(self, key: str, hold: str, resolution: pb.Resolution.ValueType, actual: int = 0) -> pb.Posting:
        request = pb.ResolveUncertainHoldRequest(
            organization_id=self.organization,
            hold_request_id=hold,
            resolution=resolution,
            actual_micros=actual,
            reason="asked the provider",
            request_id=key,
        )
        return await self.ask(self.wallets.ResolveUncertainHold, request)


@asynccontextmanager
async def desk(
    ledger: RunningLedger, issuer: TestIssuer, credits_micros: int = 0, *, role: str = "owner", service: str = "edge"
) -> AsyncGenerator[Desk]:
    spender = await tenant(ledger, credits_micros)
    async with ledger.house.channel("ledger", ledger.address, as_service=service) as channel:
        yield Desk(spender, rpc.WalletServiceStub(channel), issuer.person(**{spender.organization: role}))


async def test_a_purchase_is_posted_once_and_replayed(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at:
        first, second = await at.buy("p1", 5 * CREDIT), await at.buy("p1", 5 * CREDIT)
        found = await at.ask(at.wallets.GetWallet, pb.GetWalletRequest(organization_id=at.organization))
    assert not first.replayed
    assert second.replayed
    assert first.transfer == second.transfer
    assert (first.transfer.kind, first.transfer.debit_account, first.transfer.credit_account) == (
        "purchase",
        "purchases",
        "wallet",
    )
    assert found == first.wallet == pb.Wallet(
        organization_id=at.organization, settled_micros=5 * CREDIT, available_micros=5 * CREDIT
    )  # fmt: skip


async def test_a_key_that_was_used_otherwise_is_refused_by_the_field(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at:
        await at.buy("p1", 5 * CREDIT, "card")
        await at.buy("p2", 5 * CREDIT)
        await at.refund("r1", "p1", CREDIT)
        for again, field in (
            (at.buy("p1", 6 * CREDIT, "card"), "amount_micros"),
            (at.buy("p1", 5 * CREDIT, "cash"), "reason"),
            (at.refund("p1", "p1", CREDIT), "kind"),
            (at.refund("r1", "p2", CREDIT), "purchase_request_id"),
            (at.refund("r1", "p1", 2 * CREDIT), "amount_micros"),
        ):
            with pytest.raises(AlreadyExists) as refused:
                await again
            assert (refused.value.reason, refused.value.details["field"]) == ("REQUEST_ID_REUSED", field)


async def test_refunds_never_exceed_their_purchase_nor_what_is_available(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as at:
        await at.buy("p1", 5 * CREDIT)
        await at.buy("p2", 5 * CREDIT)
        await at.refund("r1", "p1", 3 * CREDIT)
        with pytest.raises(FailedPrecondition, match="more than is left"):
            await at.refund("r2", "p1", 3 * CREDIT)
        await at.spender.place("h", 25_000)
        with pytest.raises(Exhausted, match="not so much available"):
            await at.refund("r3", "p2", 3 * CREDIT)
        with pytest.raises(NotFound):
            await at.refund("r4", "p9", CREDIT)
        assert await at.spender.wallet() == (7 * CREDIT, 5 * CREDIT)


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("PurchaseCredits", pb.PurchaseCreditsRequest(amount_micros=0, request_id="k"), "amount_micros"),
        ("PurchaseCredits", pb.PurchaseCreditsRequest(amount_micros=10**15 + 1, request_id="k"), "amount_micros"),
        ("PurchaseCredits", pb.PurchaseCreditsRequest(amount_micros=1, request_id="a b"), "request_id"),
        ("PurchaseCredits", pb.PurchaseCreditsRequest(amount_micros=1, request_id="k", reason="\x00"), "reason"),
        ("PurchaseCredits", pb.PurchaseCreditsRequest(amount_micros=1, request_id="k", reason="x" * 501), "reason"),
        ("RefundPurchase", pb.RefundPurchaseRequest(amount_micros=1, request_id="k"), "purchase_request_id"),
        (
            "RefundPurchase",
            pb.RefundPurchaseRequest(amount_micros=1, request_id="k", purchase_request_id="\x00"),
            "purchase_request_id",
        ),
        ("ResolveUncertainHold", pb.ResolveUncertainHoldRequest(request_id="k"), "resolution"),
        ("ListTransfers", pb.ListTransfersRequest(page_size=501), "page_size"),
        ("ListTransfers", pb.ListTransfersRequest(page_token="eyJhZnRlciI6ICLCsiJ9"), "page_token"),
        ("ListEntries", pb.ListEntriesRequest(page_token=TOO_LATE), "page_token"),
        ("ListUncertainHolds", pb.ListUncertainHoldsRequest(page_token="eyJhZnRlciI6ICJ4In0="), "page_token"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named(
    ledger: RunningLedger, issuer: TestIssuer, method: str, request_: Any, field: str
) -> None:
    async with desk(ledger, issuer) as at:
        asked = type(request_)()
        asked.CopyFrom(request_)
        asked.organization_id = at.organization
        with pytest.raises(InvalidArgument) as refused:
            await at.ask(getattr(at.wallets, method), asked)
    assert refused.value.details["field"] == field


async def test_only_the_operator_adjusts_credits(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at, desk(ledger, issuer, service="operator") as operator:
        request = pb.AdjustCreditsRequest(
            organization_id=at.organization, amount_micros=7, reason="goodwill", request_id="a1"
        )
        with pytest.raises(PermissionDenied, match="edge may not call"):
            await at.ask(at.wallets.AdjustCredits, request)
        posted = await call(operator.wallets.AdjustCredits, request)
        assert (posted.wallet.settled_micros, posted.transfer.actor) == (7, "service:operator")
        request = pb.AdjustCreditsRequest(
            organization_id=at.organization, amount_micros=-8, reason="too much", request_id="a2"
        )
        with pytest.raises(Exhausted):
            await call(operator.wallets.AdjustCredits, request)
        request.organization_id = ids.new(ids.Kind.ORGANIZATION)
        with pytest.raises(NotFound):
            await call(operator.wallets.AdjustCredits, request)
        request.organization_id, request.reason = at.organization, " "
        with pytest.raises(InvalidArgument):
            await call(operator.wallets.AdjustCredits, request)


async def test_a_part_of_an_organization_has_no_wallet(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as at:
        request = pb.PurchaseCreditsRequest(organization_id=at.spender.path[-1], amount_micros=1, request_id="p")
        with pytest.raises(NotFound):
            await at.ask(at.wallets.PurchaseCredits, request)
        count = "SELECT count(*) FROM accounts WHERE organization_id = $1"
        assert await ledger.database.value(count, at.spender.path[-1]) == 0


async def test_a_viewer_reads_and_does_not_buy(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, role="viewer") as at:
        await at.ask(at.wallets.GetWallet, pb.GetWalletRequest(organization_id=at.organization))
        with pytest.raises(PermissionDenied):
            await at.buy("p", 1)


async def test_pages_of_transfers_stay_in_order_while_more_are_posted(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer) as at:
        for number in range(7):
            await at.buy(f"p{number}", 1 + number)
        seen: list[int] = []
        token = ""
        while not seen or token:
            request = pb.ListTransfersRequest(organization_id=at.organization, page_size=3, page_token=token)
            page = await at.ask(at.wallets.ListTransfers, request)
            seen += [transfer.amount_micros for transfer in page.transfers]
            token = page.next_page_token
            await at.buy(f"later{len(seen)}", 100)
    assert seen == [7, 6, 5, 4, 3, 2, 1]


async def test_entries_of_all_pages_sum_to_zero_and_a_transfer_is_never_split(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with desk(ledger, issuer, 10 * CREDIT) as at:
        budget = await at.spender.budget(CREDIT)
        for key in ("a", "b"):
            await at.spender.place(key, 5)
            await at.spender.settle(key, 5)
        entries: list[pb.Entry] = []
        token = ""
        while not entries or token:
            request = pb.ListEntriesRequest(organization_id=at.organization, page_size=1, page_token=token)
            page = await at.ask(at.wallets.ListEntries, request)
            assert len({entry.seq for entry in page.entries}) == 1
            entries += page.entries
            token = page.next_page_token
    assert sum(entry.amount_micros for entry in entries) == 0
    assert [(entry.account, entry.amount_micros) for entry in entries[:4]] == [
        (f"budget:{budget}", -5 * TOKEN_MICROS),
        ("budgets", 5 * TOKEN_MICROS),
        ("revenue", 5 * TOKEN_MICROS),
        ("wallet", -5 * TOKEN_MICROS),
    ]


async def test_usage_pages_newest_first(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, CREDIT) as at:
        for number in range(3):
            await at.spender.place(f"h{number}", 5)
            await at.spender.settle(f"h{number}", number)
        first = await at.ask(at.wallets.ListUsage, pb.ListUsageRequest(organization_id=at.organization, page_size=2))
        request = pb.ListUsageRequest(organization_id=at.organization, page_token=first.next_page_token)
        second = await at.ask(at.wallets.ListUsage, request)
    assert [one.request_id for one in (*first.usage, *second.usage)] == ["h2", "h1", "h0"]
    newest = first.usage[0]
    assert (newest.workspace_id, newest.agent_group_id, newest.agent_id) == at.spender.path[1:]
    assert (newest.output_tokens, newest.charged_micros, newest.ceiling_micros) == (
        2,
        2 * TOKEN_MICROS,
        5 * TOKEN_MICROS,
    )
    assert (newest.provider, newest.model, newest.http_status, newest.latency_ms) == ("mock", "mock-model", 200, 5)


async def test_uncertain_holds_are_listed_and_decided_once(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, 100 * TOKEN_MICROS) as at:
        for key in ("z", "y", "x", "w"):
            await at.spender.place(key, 10)
        await at.spender.lapse()
        listed: list[pb.UncertainHold] = []
        token = ""
        while not listed or token:
            request = pb.ListUncertainHoldsRequest(organization_id=at.organization, page_size=3, page_token=token)
            page = await at.ask(at.wallets.ListUncertainHolds, request)
            listed += page.holds
            token = page.next_page_token
        assert [hold.request_id for hold in listed] == ["w", "x", "y", "z"]
        assert {(hold.ceiling_micros, hold.model) for hold in listed} == {(10 * TOKEN_MICROS, "mock-model")}

        with pytest.raises(InvalidArgument, match="above what was held"):
            await at.resolve("k0", "z", pb.RESOLUTION_ACTUAL, 10 * TOKEN_MICROS + 1)
        actual = await at.resolve("k1", "z", pb.RESOLUTION_ACTUAL, 4 * TOKEN_MICROS)
        released = await at.resolve("k2", "y", pb.RESOLUTION_RELEASE)
        posted = await at.resolve("k3", "x", pb.RESOLUTION_POST)
        assert [one.wallet.settled_micros // TOKEN_MICROS for one in (actual, released, posted)] == [66, 76, 76]
        assert (await at.resolve("k1", "z", pb.RESOLUTION_ACTUAL, 4 * TOKEN_MICROS)).replayed
        for again, field in (
            (at.resolve("k1", "z", pb.RESOLUTION_ACTUAL, 5 * TOKEN_MICROS), "actual_micros"),
            (at.resolve("k1", "w", pb.RESOLUTION_ACTUAL, 4 * TOKEN_MICROS), "hold_request_id"),
        ):
            with pytest.raises(AlreadyExists) as refused:
                await again
            assert refused.value.details["field"] == field
        with pytest.raises(FailedPrecondition, match="decided before"):
            await at.resolve("k4", "z", pb.RESOLUTION_RELEASE)
        with pytest.raises(NotFound):
            await at.resolve("k5", "never", pb.RESOLUTION_RELEASE)
        request = pb.ListUncertainHoldsRequest(organization_id=at.organization)
        left = await at.ask(at.wallets.ListUncertainHolds, request)
    assert [hold.request_id for hold in left.holds] == ["w"]
