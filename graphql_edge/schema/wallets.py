"""Money: the wallet, what moved in and out of it, and the holds whose outcome somebody must decide."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, KeyRequired, key_of, mutation
from graphql_edge.schema.scalars import Int64, Micros, time_of
from mandate.ledger.v1 import wallets_pb2 as pb


@strawberry.type
class Wallet:
    """An organization's money at one moment; available is settled less held."""

    settled_micros: Micros
    held_micros: Micros
    available_micros: Micros


@strawberry.type
class Transfer:
    """One append-only row, posted under `requestId`: an amount, always above 0, from one account to another."""

    id: strawberry.ID
    seq: Int64
    kind: str
    debit_account: str
    credit_account: str
    amount_micros: Micros
    request_id: str
    actor: str
    reason: str
    time: datetime


@strawberry.enum
class HoldResolution(Enum):
    """What becomes of an uncertain hold: charge what you say, give all back, or charge the whole ceiling."""

    ACTUAL = pb.RESOLUTION_ACTUAL
    RELEASE = pb.RESOLUTION_RELEASE
    POST = pb.RESOLUTION_POST


@strawberry.input
class PurchaseCreditsInput(KeyRequired):
    """How much is bought, 1 to 10^15 micro-credits."""

    organization_id: strawberry.ID
    micros: Micros
    reason: str = ""


@strawberry.input
class RefundPurchaseInput(KeyRequired):
    """How much of which purchase is taken back; a purchase is named by its idempotency key."""

    organization_id: strawberry.ID
    purchase_idempotency_key: str
    micros: Micros
    reason: str = ""


@strawberry.input
class ResolveUncertainHoldInput(Keyed):
    """The decision on one hold; `actualMicros`, 0 up to its ceiling, goes with ACTUAL."""

    organization_id: strawberry.ID
    hold_request_id: str
    resolution: HoldResolution
    actual_micros: Micros | None = None
    reason: str = ""


@strawberry.type
class PostingPayload(Payload):
    """The transfer as it was posted and the wallet after it; `replayed` says that the key had been used before."""

    transfer: Transfer | None = None
    wallet: Wallet | None = None
    replayed: bool = False


def wallet_of(message: pb.Wallet) -> Wallet:
    """Read a wallet from the contract's message."""
    return Wallet(
        settled_micros=Micros(message.settled_micros),
        held_micros=Micros(message.held_micros),
        available_micros=Micros(message.available_micros),
    )


def transfer_of(message: pb.Transfer) -> Transfer:
    """Read a transfer from the contract's message."""
    return Transfer(
        id=strawberry.ID(message.id),
        seq=Int64(message.seq),
        kind=message.kind,
        debit_account=message.debit_account,
        credit_account=message.credit_account,
        amount_micros=Micros(message.amount_micros),
        request_id=message.request_id,
        actor=message.actor,
        reason=message.reason,
        time=time_of(message.time),
    )


def _posting(message: pb.Posting) -> PostingPayload:
    return PostingPayload(
        transfer=transfer_of(message.transfer), wallet=wallet_of(message.wallet), replayed=message.replayed
    )


@strawberry.type
class WalletMutations:
    """Buy, take back, decide."""

    @mutation
    async def purchase_credits(self, info: Info, input: PurchaseCreditsInput) -> PostingPayload | None:
        """Add bought credits to the wallet."""
        request = pb.PurchaseCreditsRequest(
            organization_id=input.organization_id,
            amount_micros=input.micros,
            reason=input.reason,
            request_id=key_of(input),
        )
        return _posting(await info.context.call(info.context.stubs.wallets.PurchaseCredits, request))

    @mutation
    async def refund_purchase(self, info: Info, input: RefundPurchaseInput) -> PostingPayload | None:
        """Take bought credits back; never more than the purchase, nor than what is available."""
        request = pb.RefundPurchaseRequest(
            organization_id=input.organization_id,
            purchase_request_id=input.purchase_idempotency_key,
            amount_micros=input.micros,
            reason=input.reason,
            request_id=key_of(input),
        )
        return _posting(await info.context.call(info.context.stubs.wallets.RefundPurchase, request))

    @mutation
    async def resolve_uncertain_hold(self, info: Info, input: ResolveUncertainHoldInput) -> PostingPayload | None:
        """Decide an uncertain hold once and for all."""
        request = pb.ResolveUncertainHoldRequest(
            organization_id=input.organization_id,
            hold_request_id=input.hold_request_id,
            resolution=pb.Resolution.ValueType(input.resolution.value),
            actual_micros=input.actual_micros or 0,
            reason=input.reason,
            request_id=key_of(input),
        )
        return _posting(await info.context.call(info.context.stubs.wallets.ResolveUncertainHold, request))
