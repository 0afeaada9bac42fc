from __future__ import annotations

import asyncio
import gzip
from functools import partial

import pytest

from gateway_svc.providers import BrokenOff
from gateway_svc.providers.http1.exchange import BODY_BYTES_MAX, PART_BYTES_LEAST, UNREAD_BYTES_MAX, Exchange
from gateway_svc.providers.upstream import Limits, Room, TooLarge
from tests.fakes.raw_provider import Visit, raw_provider
from tests.services.http1_running import CHUNKED, LOOPS, OK, Play, asked, play_on, pooled, saying


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


def test_a_body_past_its_limit_broke_off_and_one_at_it_is_whole(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            size = BODY_BYTES_MAX + visit.number - 1
            await visit.say(OK + b"content-length: %d\r\n\r\n" % size)
            await visit.say(bytes(size))

        async with raw_provider(script) as provider, pooled() as upstream:
            assert len(await asked(upstream, provider)) == BODY_BYTES_MAX
            with pytest.raises(TooLarge, match="too large"):
                await asked(upstream, provider)

    play(scenario())


def test_bytes_that_nobody_reads_stay_with_the_provider_until_somebody_does(play: Play) -> None:
    async def scenario() -> None:
        size = 16 * 1024 * 1024
        room = Room()
        limits = Limits(silence_seconds=0.3)
        async with (
            raw_provider(saying(OK + b"content-length: %d\r\n\r\n" % size + bytes(size))) as provider,
            pooled(limits, room=room) as upstream,
            upstream.post(provider.url, {}, b"") as answer,
        ):
            await asyncio.sleep(0.6)  # longer than a peer may be silent: it is we who do not read
            assert room.held_bytes < 4 * UNREAD_BYTES_MAX
            assert sum([len(part) async for part in answer.chunks()]) == size

    play(scenario())


def test_a_process_holds_no_more_unread_bytes_than_it_has_room_for(play: Play) -> None:
    async def scenario() -> None:
        answers = saying(OK + b"content-length: 200000\r\n\r\n" + bytes(200_000))
        async with raw_provider(answers) as provider, pooled(room=Room(bytes_max=500_000)) as upstream:
            asking = [asked(upstream, provider) for _ in range(6)]
            assert len(await asyncio.gather(*asking[:1])) == 1
            async with upstream.post(provider.url, {}, b"") as one, upstream.post(provider.url, {}, b"") as other:
                await asyncio.sleep(0.2)
                with pytest.raises(TooLarge, match="wait to be read"):
                    await asking[1]
                assert [len(await one.body()), len(await other.body())] == [200_000, 200_000]
            assert {len(body) for body in [await one for one in asking[2:]]} == {200_000}

    play(scenario())


ENCODED = [
    (b"gzip", gzip.compress(b"hello" * 100), b"hello" * 100),
    (b"identity", b"hello", b"hello"),
    (b"br", b"hello", BrokenOff),
    (b"gzip", gzip.compress(b"hello")[:-3], BrokenOff),
    (b"gzip", gzip.compress(bytes(BODY_BYTES_MAX + 1)), TooLarge),
]


@pytest.mark.parametrize(("encoding", "wire", "body"), ENCODED, ids=["gzip", "identity", "unknown", "short", "bomb"])
def test_a_body_that_was_encoded_unasked_is_decoded_or_broke_off(
    play: Play, encoding: bytes, wire: bytes, body: bytes | type[BrokenOff]
) -> None:
    head = OK + b"content-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (encoding, len(wire))

    async def scenario() -> None:
        async with raw_provider(saying(head + wire)) as provider, pooled() as upstream:
            if isinstance(body, bytes):
                assert await asked(upstream, provider) == body
            else:
                with pytest.raises(BrokenOff) as raised:
                    await asked(upstream, provider)
                assert type(raised.value) is body

    play(scenario())


class NoLine:
    """A connection to nowhere."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def over(self, *, reusable: bool, keep_seconds: int | None) -> None: ...


def test_small_parts_are_counted_as_what_they_take_in_memory() -> None:
    room = Room()
    exchange = Exchange(NoLine(), room, 0.0)
    exchange.received(CHUNKED, 0.0)
    for _ in range(10):
        exchange.received(b"1\r\na\r\n", 0.0)
    assert room.held_bytes == 10 * PART_BYTES_LEAST
    exchange.put_away()
    assert room.held_bytes == 0
