"""A ledger as the gateway sees its stream: it grants every hold, and refuses settles as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import faults
from mesh.errors import Internal, MeshError
from mesh.server import Registration

UNUSED = Internal("UNUSED", "the stand-in does not answer this")
Context = grpc.aio.ServicerContext[pb.ChargeRequest, pb.ChargeResponse]


class Silent(rpc.ChargeServiceServicer):
    """Answers no call; what a stand-in has to say it says itself."""

    async def Charge(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.ChargeResponse]:  # noqa: ARG002, N802
        for nothing in ():
            yield nothing

    async def PlaceHolds(self, request: pb.PlaceHoldsRequest, context: Any) -> pb.PlaceHoldsResponse:  # noqa: ARG002, N802
        raise UNUSED

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Any) -> pb.SettleHoldsResponse:  # noqa: ARG002, N802
        raise UNUSED

    async def VoidHolds(self, request: pb.VoidHoldsRequest, context: Any) -> pb.VoidHoldsResponse:  # noqa: ARG002, N802
        raise UNUSED

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:  # noqa: ARG002, N802
        raise UNUSED

    async def PostCharges(self, request: pb.PostChargesRequest, context: Any) -> pb.PostChargesResponse:  # noqa: ARG002, N802
        raise UNUSED


class FakeCharges(Silent):
    """Implements mandate.ledger.v1.ChargeService in memory; each refusal is used once."""

    def __init__(self, *refusals: MeshError) -> None:
        self.refusals = list(refusals)
        self.settles: list[pb.SettleHold] = []

    async def Charge(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.ChargeRequest],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.ChargeResponse]:
        async for request in request_iterator:
            yield pb.ChargeResponse(
                beat=request.beat,
                holds=[
                    pb.HoldAnswer(
                        request_id=hold.request_id, granted=pb.HoldGranted(output_tokens=hold.output_tokens_wanted)
                    )
                    for hold in request.holds
                ],
                settles=[self._settle(settle) for settle in request.settles],
            )

    def registration(self) -> Registration:
        """Return it as a server serves it."""
        return Registration.of(pb, rpc, self)

    def _settle(self, settle: pb.SettleHold) -> pb.SettleAnswer:
        self.settles.append(settle)
        if self.refusals:
            return pb.SettleAnswer(request_id=settle.request_id, fault=faults.to_fault(self.refusals.pop(0)))
        return pb.SettleAnswer(request_id=settle.request_id, settled=pb.Settled(charged_micros=1))
