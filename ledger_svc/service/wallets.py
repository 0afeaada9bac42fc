"""Wallets: read them, and move credits in and out by hand."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.accounts import KINDS as ACCOUNT_KINDS
from ledger_svc.store import registry, wallets
from mandate.ledger.v1 import wallets_pb2 as pb
from mandate.ledger.v1 import wallets_pb2_grpc as rpc
from mesh import caller
from mesh.db import Database
from mesh.errors import Exhausted, FailedPrecondition, NotFound, invalid
from mesh.idempotency import REQUEST_ID, check_request_id
from mesh.money import MICROS_MAX
from mesh.paging import Page, next_token, page_of

PAGE_MAX = 500
REASON_MAX = 500
BATCH_MAX = 1_000
TRANSFER_KINDS = frozenset({"adjustment", "promotion", "reversal", "repayment", "write_off"})  # the rest have RPCs
SEQ = re.compile(r"[0-9]{1,18}")
Context = grpc.aio.ServicerContext[Any, Any]


class WalletServicer(rpc.WalletServiceServicer):
    """Implements mandate.ledger.v1.WalletService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetWallet(self, request: pb.GetWalletRequest, context: Context) -> pb.Wallet:
        return await self._wallet(request.organization_id)

    async def PurchaseCredits(self, request: pb.PurchaseCreditsRequest, context: Context) -> pb.Posting:
        _check_amount(request.amount_micros, 1)
        return await self._post(request.organization_id, request, "purchase", request.amount_micros)

    async def RefundPurchase(self, request: pb.RefundPurchaseRequest, context: Context) -> pb.Posting:
        _check_amount(request.amount_micros, 1)
        if not REQUEST_ID.fullmatch(request.purchase_request_id):
            raise invalid("purchase_request_id", "must be the request_id of a purchase")
        amount = -request.amount_micros
        return await self._post(request.organization_id, request, "refund", amount, request.purchase_request_id)

    async def AdjustCredits(self, request: pb.AdjustCreditsRequest, context: Context) -> pb.Posting:
        _check_amount(request.amount_micros, -MICROS_MAX)
        if not request.reason.strip():
            raise invalid("reason", "an adjustment states its reason")
        if await registry.organization_of(self._db, request.organization_id) != request.organization_id:
            raise NotFound("NOT_FOUND", f"no organization {request.organization_id!r}"[:200], field="organization_id")
        return await self._post(request.organization_id, request, "adjustment", request.amount_micros)

    async def PostTransfers(self, request: pb.PostTransfersRequest, context: Context) -> pb.PostTransfersResponse:
        if await registry.organization_of(self._db, request.organization_id) != request.organization_id:
            raise NotFound("NOT_FOUND", f"no organization {request.organization_id!r}"[:200], field="organization_id")
        transfers = _new_transfers(request.transfers)
        actor = caller.current().actor
        posted, balance = await wallets.post_batch(self._db, request.organization_id, transfers, actor)
        return pb.PostTransfersResponse(
            transfers=[wire.transfer_answer(new.key, done) for new, done in zip(transfers, posted, strict=True)],
            balance_micros=balance,
        )

    async def ListTransfers(self, request: pb.ListTransfersRequest, context: Context) -> pb.ListTransfersResponse:
        page = page_of(request.page_size, request.page_token, size_max=PAGE_MAX)
        rows = await wallets.transfers(self._db, request.organization_id, _before(page), page.size + 1)
        return pb.ListTransfersResponse(
            transfers=[wire.transfer(request.organization_id, row) for row in rows[: page.size]],
            next_page_token=next_token(page, [str(row["seq"]) for row in rows]),
        )

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Context) -> pb.ListEntriesResponse:
        page = page_of(request.page_size, request.page_token, size_max=PAGE_MAX)
        rows = await wallets.entries(self._db, request.organization_id, _before(page), page.size + 1)
        seqs = list(dict.fromkeys(row["seq"] for row in rows))
        shown = set(seqs[: page.size])
        entries = [
            pb.Entry(
                transfer_id=f"{request.organization_id}/{row['seq']}",
                seq=row["seq"],
                account=row["account"],
                amount_micros=row["amount_micros"],
                kind=row["kind"],
                request_id=row["key"],
                time=wire.stamp(row["posted_at"]),
            )
            for row in rows
            if row["seq"] in shown
        ]
        return pb.ListEntriesResponse(entries=entries, next_page_token=next_token(page, [str(seq) for seq in seqs]))

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        page = page_of(request.page_size, request.page_token, size_max=PAGE_MAX)
        rows = await wallets.usage(self._db, request.organization_id, _before(page), page.size + 1)
        return pb.ListUsageResponse(
            usage=[wire.usage(request.organization_id, row) for row in rows[: page.size]],
            next_page_token=next_token(page, [str(row["seq"]) for row in rows]),
        )

    async def ListUncertainHolds(
        self, request: pb.ListUncertainHoldsRequest, context: Context
    ) -> pb.ListUncertainHoldsResponse:
        page = page_of(request.page_size, request.page_token, size_max=PAGE_MAX)
        rows = await wallets.uncertain(self._db, request.organization_id, _after_hold(page), page.size + 1)
        holds: list[pb.UncertainHold] = []
        for row in rows[: page.size]:
            provider, _, model = row["routes"].split(",")[0].partition("/")
            holds.append(
                pb.UncertainHold(
                    request_id=row["request_id"],
                    agent_id=row["agent_id"],
                    holder_id=row["holder_id"],
                    ceiling_micros=row["ceiling_micros"],
                    hold_time=wire.stamp(row["held_at"]),
                    uncertain_time=wire.stamp(row["decided_at"]),
                    provider=provider,
                    model=model,
                )
            )
        token = next_token(page, [f"{row['decided_at'].isoformat()} {row['request_id']}" for row in rows])
        return pb.ListUncertainHoldsResponse(holds=holds, next_page_token=token)

    async def ResolveUncertainHold(self, request: pb.ResolveUncertainHoldRequest, context: Context) -> pb.Posting:
        key = check_request_id(request)
        resolved = await wallets.resolve(
            self._db,
            request.organization_id,
            key,
            request.hold_request_id,
            _actual(request),
            caller.current().actor,
            _reason(request.reason),
        )
        _check_resolved(resolved)
        row = await wallets.last_transfer_of(self._db, request.organization_id, request.hold_request_id)
        wallet = await self._wallet(request.organization_id)
        transfer = wire.transfer(request.organization_id, row) if row else None
        return pb.Posting(transfer=transfer, wallet=wallet, replayed=resolved.replayed)

    async def _wallet(self, organization_id: str) -> pb.Wallet:
        balance = await wallets.balance(self._db, organization_id)
        return pb.Wallet(
            organization_id=organization_id,
            settled_micros=balance.settled_micros,
            held_micros=balance.held_micros,
            available_micros=balance.settled_micros - balance.held_micros,
        )

    async def _post(self, organization_id: str, request: Any, kind: str, amount: int, purchase: str = "") -> pb.Posting:
        key, reason, actor = check_request_id(request), _reason(request.reason), caller.current().actor
        posted = await wallets.post(self._db, organization_id, key, kind, amount, purchase, actor, reason)
        match posted.status:
            case wallets.SHORT:
                raise Exhausted("BALANCE_SHORT", "the wallet has not so much available", account="wallet")
            case wallets.NO_PURCHASE:
                raise NotFound("PURCHASE_NOT_FOUND", "no such purchase", field="purchase_request_id")
            case wallets.ABOVE_PURCHASE:
                raise FailedPrecondition(
                    "REFUND_ABOVE_PURCHASE", "more than is left of the purchase", field="amount_micros"
                )
            case wallets.DIFFERS:
                raise wire.differs(posted.field)
            case _:
                pass
        row = await wallets.transfer(self._db, organization_id, posted.seq or 0)
        transfer = wire.transfer(organization_id, row) if row else None
        return pb.Posting(transfer=transfer, wallet=await self._wallet(organization_id), replayed=posted.replayed)


def _new_transfers(messages: Sequence[pb.NewTransfer]) -> list[wallets.NewTransfer]:
    if not 1 <= len(messages) <= BATCH_MAX:
        raise invalid("transfers", f"must be 1 to {BATCH_MAX}")
    if messages[-1].linked:
        raise invalid("transfers.linked", "the last transfer has none to be linked to")
    found = [_new_transfer(message) for message in messages]
    if len({new.key for new in found}) < len(found):
        raise invalid("transfers.request_id", "each transfer has a key of its own")
    return found


def _new_transfer(message: pb.NewTransfer) -> wallets.NewTransfer:
    if not REQUEST_ID.fullmatch(message.request_id):
        raise invalid("transfers.request_id", f"is no key: {message.request_id!r}"[:200])
    if not 1 <= message.amount_micros <= MICROS_MAX:
        raise invalid("transfers.amount_micros", f"must be 1 to {MICROS_MAX}")
    kind = _one_of(TRANSFER_KINDS, "transfers.kind", message.kind)
    debit = _one_of(ACCOUNT_KINDS, "transfers.debit_account", message.debit_account)
    credit = _one_of(ACCOUNT_KINDS - {debit}, "transfers.credit_account", message.credit_account)
    reason = _reason(message.reason)
    if not reason.strip():
        raise invalid("transfers.reason", "a transfer by hand states its reason")
    return wallets.NewTransfer(message.request_id, kind, debit, credit, message.amount_micros, reason, message.linked)


def _one_of(names: frozenset[str], field: str, name: str) -> str:
    if name not in names:
        raise invalid(field, f"must be one of {', '.join(sorted(names))}")
    return name


def _before(page: Page) -> int | None:
    if page.after is None:
        return None
    if not SEQ.fullmatch(page.after):
        raise invalid("page_token", "was not given out by this list")
    return int(page.after)


def _after_hold(page: Page) -> tuple[datetime, str] | None:
    if page.after is None:
        return None
    moment, _, request_id = page.after.partition(" ")
    try:
        return datetime.fromisoformat(moment), request_id
    except ValueError:
        raise invalid("page_token", "was not given out by this list") from None


def _check_amount(amount_micros: int, least: int) -> None:
    if not least <= amount_micros <= MICROS_MAX or amount_micros == 0:
        raise invalid("amount_micros", f"must be {least} to {MICROS_MAX}, and not 0")


def _reason(text: str) -> str:
    if len(text) > REASON_MAX or any(unicodedata.category(character) == "Cc" for character in text):
        raise invalid("reason", f"must have at most {REASON_MAX} characters, none of them a control character")
    return text.strip()


def _actual(request: pb.ResolveUncertainHoldRequest) -> int | None:
    match request.resolution:
        case pb.RESOLUTION_ACTUAL:
            if not 0 <= request.actual_micros <= MICROS_MAX:
                raise invalid("actual_micros", "must not be below 0")
            return request.actual_micros
        case pb.RESOLUTION_RELEASE:
            return 0
        case pb.RESOLUTION_POST:
            return None
        case _:
            raise invalid("resolution", "must be ACTUAL, RELEASE or POST")


def _check_resolved(resolved: wallets.Posted) -> None:
    match resolved.status:
        case 2:
            raise NotFound("HOLD_NOT_FOUND", "no such uncertain hold", field="hold_request_id")
        case 3:
            raise FailedPrecondition("HOLD_ENDED", "the hold was decided before")
        case 4:
            raise invalid("actual_micros", "is above what was held")
        case 5:
            raise wire.differs(resolved.field)
        case _:
            return
