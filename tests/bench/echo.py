"""The ledger's contract answered by nobody: the same server, certificates and interceptors, and no ledger behind them.

Run as `python -m tests.bench.echo` by `make bench-ledger`, which compares unary calls with it, and by
`make bench-gateway`, for which a beat on its stream is what a round trip costs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import server, settings
from mesh.server import Registration
from tests.fakes.charges import Silent

Context = grpc.aio.ServicerContext[Any, Any]


class Echo(Silent):
    """Grants and settles whatever is asked, and has nothing else to say."""

    async def Charge(
        self, request_iterator: AsyncIterator[pb.ChargeRequest], context: Context
    ) -> AsyncIterator[pb.ChargeResponse]:
        async for request in request_iterator:
            yield pb.ChargeResponse(beat=request.beat)

    async def PlaceHolds(self, request: pb.PlaceHoldsRequest, context: Context) -> pb.PlaceHoldsResponse:
        granted = pb.HoldGranted(output_tokens=1, ceiling_micros=1)
        return pb.PlaceHoldsResponse(
            holds=[pb.HoldAnswer(request_id=hold.request_id, granted=granted) for hold in request.holds]
        )

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Context) -> pb.SettleHoldsResponse:
        settled = pb.Settled(charged_micros=1, balance_micros=1)
        return pb.SettleHoldsResponse(
            settles=[pb.SettleAnswer(request_id=settle.request_id, settled=settled) for settle in request.settles]
        )


class NoKeys:
    """Nobody's token is verified."""

    async def public_key(self, key_id: str) -> None:
        """Return no key."""


async def resolve(object_id: str) -> str | None:
    """Return no organization."""
    del object_id
    return None


async def main() -> None:
    """Run until told to stop."""
    runtime = settings.load(settings.Runtime)
    server.prepare("ledger", runtime)
    await server.serve(server.Server("ledger", runtime, [Registration.of(pb, rpc, Echo())], NoKeys(), resolve), ())


if __name__ == "__main__":
    server.run(main())
