from __future__ import annotations

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from tests.conftest import RunningLedger


async def test_a_hold_is_granted_settled_and_replayed(ledger: RunningLedger) -> None:
    *_, agent = await ledger.tenant(10_000_000)
    async with ledger.house.channel("ledger", ledger.address, as_service="gateway") as channel:
        stream = rpc.ChargeServiceStub(channel).Charge()
        hold = pb.PlaceHold(
            request_id="r1",
            agent_id=agent,
            path_version=4,
            routes=[pb.Route(provider="mock", model="mock-flat")],
            input_tokens_max=10,
            output_tokens_wanted=16,
            output_tokens_min=16,
            choices=1,
        )
        await stream.write(pb.ChargeRequest(holder_id=ids.new(ids.Kind.HOLDER), beat=1, holds=[hold]))
        first = pb.ChargeResponse()
        while not (first.holds and first.beat):
            first.MergeFrom(await stream.read())
        usage = pb.TokenUsage(input_tokens=3, output_tokens=4)
        settle = pb.SettleHold(request_id="r1", agent_id=agent, outcome="ok", usage=usage)
        await stream.write(pb.ChargeRequest(holds=[hold], settles=[settle]))
        second = pb.ChargeResponse()
        while not (second.holds and second.settles):
            second.MergeFrom(await stream.read())
        await stream.done_writing()
    assert first.holds[0].granted == pb.HoldGranted(output_tokens=16, ceiling_micros=1_000_000)
    assert second.holds[0].granted.replayed
    assert second.settles[0].settled == pb.Settled(charged_micros=1_000_000, balance_micros=9_000_000)
