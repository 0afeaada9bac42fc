"""A ledger as the gateway sees its stream: it grants every hold, and refuses settles as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import faults
from mesh.errors import MeshError
from mesh.server import Registration

Context = grpc.aio.ServicerContext[pb.ChargeRequest, pb.ChargeResponse]


class FakeCharges(rpc.ChargeServiceServicer):
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
