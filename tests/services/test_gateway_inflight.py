from __future__ import annotations

import asyncio
from time import thread_time

import pytest

from gateway_svc.inflight import Inflight, Item
from mandate.ledger.v1 import charges_pb2 as pb

ANSWER = pb.SettleAnswer(request_id="req_1", settled=pb.Settled(charged_micros=1))


def a_settle(inflight: Inflight, seconds: float = 30) -> Item:
    return inflight.add_settle(pb.SettleHold(request_id="req_1"), pb.SettleHold, seconds)


async def test_who_has_waited_too_long_is_told_and_the_settle_stays_on_its_way() -> None:
    inflight = Inflight()
    item = a_settle(inflight, seconds=0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(item.answer), 5)
    assert await inflight.settled(0) == 1
    inflight.resolve(ANSWER)
    assert await inflight.settled(0) == 0


async def test_nobody_is_told_before_the_time() -> None:
    inflight = Inflight()
    late, early = a_settle(inflight), inflight.add_hold(pb.PlaceHold(request_id="req_2"), "gtw_1", 0.01)
    with pytest.raises(TimeoutError):
        await early.answer
    assert not late.answer.done()


async def test_the_end_is_waited_for_though_whoever_asked_has_left() -> None:
    inflight = Inflight()
    item = a_settle(inflight)
    item.answer.cancel()
    ending = asyncio.ensure_future(inflight.settled(5))
    await asyncio.sleep(0)
    assert not ending.done()
    inflight.resolve(ANSWER)
    assert await ending == 0


async def test_an_answer_in_time_is_handed_over() -> None:
    inflight = Inflight()
    item = a_settle(inflight)
    inflight.resolve(ANSWER)
    assert await item.answer == ANSWER
    assert await inflight.settled(0) == 0


async def seconds_to_resolve(inflight: Inflight, many: int) -> float:
    for number in range(many):
        inflight.add_settle(pb.SettleHold(request_id=f"req_{number}"), pb.SettleHold, 30)
    gathered = [pb.SettleAnswer(request_id=f"req_{number}") for number in range(many)]
    await asyncio.sleep(0)
    started = thread_time()
    for each in gathered:
        inflight.resolve(each)
    return thread_time() - started


async def test_an_answer_takes_no_longer_while_the_end_is_waited_for() -> None:
    plain = await seconds_to_resolve(Inflight(), 5_000)
    inflight = Inflight()
    a_settle(inflight)
    ending = asyncio.ensure_future(inflight.settled(30))
    await asyncio.sleep(0)
    assert await seconds_to_resolve(inflight, 5_000) < 20 * plain  # a look at all that is left each time: hundreds
    assert await ending == 0
