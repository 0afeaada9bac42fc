from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gateway_svc.providers import BrokenOff, NotSent
from gateway_svc.providers.http1.exchange import Exchange
from gateway_svc.providers.http1.framing import Reading
from gateway_svc.providers.upstream import Limits
from mesh import children
from tests.fakes.raw_provider import Visit, raw_provider
from tests.services.http1_running import CHUNKED, HELLO, LOOPS, OK, Play, asked, closing, play_on, pooled, saying

SHORT = Limits(silence_seconds=0.3, connect_seconds=0.3, turn_seconds=0.3, idle_seconds=0.3)


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_request_arrives_as_it_was_given_and_a_long_body_too(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider, pooled() as upstream:
            for body in (b"{}", b"x" * 300_000):
                assert await asked(upstream, provider, body) == b"hello"
                assert provider.requests[-1].endswith(b"\r\nx-a: b\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            assert provider.requests[0].startswith(b"POST /v1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % provider.port)

    play(scenario())


STREAMED = CHUNKED + b"".join(chunk(b"data: %d\n\n" % number) for number in range(5)) + b"0\r\nx: y\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_stream_gives_its_bytes_as_they_come_and_the_connection_is_used_again(play: Play, step: int) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(STREAMED, step=step)) as provider, pooled() as upstream:
            for _ in range(3):
                async with upstream.post(provider.url, {}, b"") as answer:
                    parts = [part async for part in answer.chunks()]
                assert b"".join(parts) == b"".join(b"data: %d\n\n" % number for number in range(5))
                assert all(parts)
            assert provider.connections == 1

    play(scenario())


def test_the_head_is_given_before_the_body_has_come(play: Play) -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def script(visit: Visit) -> None:
            await visit.say(b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\ncontent-length: 2\r\n\r\n")
            await go.wait()
            await visit.say(b"no")

        async with (
            raw_provider(script) as provider,
            pooled() as upstream,
            upstream.post(provider.url, {}, b"") as answer,
        ):
            assert (answer.status, answer.header("retry-after"), answer.header("none")) == (429, "7", "")
            go.set()
            assert await answer.body() == b"no"

    play(scenario())


UNFRAMED = [
    (closing(OK + b"\r\nuntil close"), b"until close"),
    (closing(b"HTTP/1.0 200 OK\r\n\r\nold"), b"old"),
    (saying(OK + b"connection: close\r\ncontent-length: 1\r\n\r\na"), b"a"),
    (saying(OK + b"keep-alive: timeout=1\r\ncontent-length: 1\r\n\r\na"), b"a"),
    (saying(HELLO + b"more"), b"hello"),
]


@pytest.mark.parametrize(("script", "body"), UNFRAMED)
def test_a_connection_that_will_not_last_is_not_kept(play: Play, script: Any, body: bytes) -> None:
    async def scenario() -> None:
        async with raw_provider(script) as provider, pooled() as upstream:
            assert await asked(upstream, provider) == body
            assert upstream.pool.counts[1] == 0
            await provider.gone()

    play(scenario())


def test_a_connection_that_says_something_while_it_is_idle_is_closed(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(HELLO)
            await asyncio.sleep(0.05)
            await visit.say(b"HTTP/1.1 408 Too late\r\ncontent-length: 0\r\n\r\n")

        async with raw_provider(script) as provider, pooled() as upstream:
            assert await asked(upstream, provider) == b"hello"
            await asyncio.wait_for(provider.gone(), 2)  # not by its idle time, which is longer
            assert upstream.pool.counts == (0, 0, 0)
            assert await asked(upstream, provider) == b"hello"

    play(scenario())


def test_a_connection_that_the_peer_closed_while_idle_is_not_used_again(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(closing(HELLO)) as provider, pooled() as upstream:
            for _ in range(20):
                assert await asked(upstream, provider) == b"hello"
                await provider.gone()
                await asyncio.sleep(0.01)
            assert provider.connections == 20

    play(scenario())


def test_an_idle_connection_is_closed_after_its_time(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider, pooled(SHORT) as upstream:
            await asked(upstream, provider)
            assert upstream.pool.counts == (1, 1, 1)
            await provider.gone()
            assert upstream.pool.counts == (0, 0, 0)

    play(scenario())


def test_a_used_connection_that_closes_without_an_answer_broke_off_and_nothing_is_sent_twice(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            if visit.number == 2:
                visit.cut()
            else:
                await visit.say(HELLO)

        async with raw_provider(script) as provider, pooled() as upstream:
            await asked(upstream, provider)
            with pytest.raises(BrokenOff):
                await asked(upstream, provider)
            assert (provider.connections, len(provider.requests)) == (1, 2)

    play(scenario())


DYING = [HELLO, STREAMED, b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO]


@pytest.mark.parametrize("wire", DYING)
@pytest.mark.parametrize("abruptly", [False, True])
def test_an_answer_that_dies_at_any_stage_broke_off(play: Play, wire: bytes, *, abruptly: bool) -> None:
    async def scenario() -> None:
        stages = iter(range(0, len(wire), 3))

        async def script(visit: Visit) -> None:
            await visit.say(wire[: next(stages)])
            if abruptly:
                visit.cut()
            else:
                visit.writer.close()

        async with raw_provider(script) as provider, pooled() as upstream:
            for _ in range(0, len(wire), 3):
                with pytest.raises(BrokenOff):
                    await asked(upstream, provider)
                assert upstream.pool.counts[1] == 0

    play(scenario())


def test_what_came_before_a_stream_died_is_given_first(play: Play) -> None:
    async def scenario() -> None:
        async with (
            raw_provider(closing(CHUNKED + chunk(b"one"))) as provider,
            pooled() as upstream,
            upstream.post(provider.url, {}, b"") as answer,
        ):
            await asyncio.sleep(0.1)
            chunks = answer.chunks()
            assert await anext(chunks) == b"one"
            with pytest.raises(BrokenOff, match="ended early"):
                await anext(chunks)

    play(scenario())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", OK + b"content-length: 9\r\n\r\n", CHUNKED + chunk(b"a")])
def test_a_provider_that_falls_silent_broke_off_in_time(play: Play, said: bytes) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(said or b"HTTP")
            await visit.wait_for_the_end()

        async with raw_provider(script) as provider, pooled(SHORT) as upstream:
            started = asyncio.get_running_loop().time()
            with pytest.raises(BrokenOff, match="silent"):
                await asked(upstream, provider)
            assert 0.25 < asyncio.get_running_loop().time() - started < 1
            await provider.gone()

    play(scenario())


def test_a_provider_that_is_slow_but_never_silent_is_heard_out(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(CHUNKED)
            for _ in range(8):
                await asyncio.sleep(0.1)
                await visit.say(chunk(b"a"))
            await visit.say(b"0\r\n\r\n")

        async with raw_provider(script) as provider, pooled(SHORT) as upstream:
            assert await asked(upstream, provider) == b"a" * 8

    play(scenario())


def test_a_port_that_takes_connections_and_never_speaks_tls_was_sent_nothing(play: Play) -> None:
    async def scenario() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            async with pooled(SHORT) as upstream:
                with pytest.raises(NotSent):
                    async with upstream.post(f"https://127.0.0.1:{deaf.getsockname()[1]}/", {}, b""):
                        pytest.fail("it answered")

    play(scenario())


UNSENT: list[Callable[[], tuple[str, dict[str, str]]]] = [
    lambda: (f"http://127.0.0.1:{children.free_port()}/", {}),
    lambda: ("http://no-such-name.invalid/", {}),
    lambda: ("http://" + "a" * 70 + ".example/", {}),
    lambda: ("http://127.0.0.1/", {"a": "b\r\nc: d"}),
    lambda: ("http://127.0.0.1/", {"content-length": "0"}),
    lambda: ("gopher://127.0.0.1/", {}),
]


@pytest.mark.parametrize("request_of", UNSENT)
def test_what_cannot_be_sent_was_sent_to_nobody(
    play: Play, request_of: Callable[[], tuple[str, dict[str, str]]]
) -> None:
    async def scenario() -> None:
        async with pooled() as upstream:
            url, headers = request_of()
            with pytest.raises(NotSent):
                async with upstream.post(url, headers, b""):
                    pytest.fail("it answered")

    play(scenario())


def test_a_stream_left_at_its_last_event_keeps_its_connection_and_an_endless_one_does_not(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(CHUNKED + chunk(b"data: [DONE]\n\n"))
            await asyncio.sleep(0.01)
            await visit.say(b"0\r\n\r\n" if visit.number == 1 else chunk(b"more"))

        async with raw_provider(script) as provider, pooled() as upstream:
            for kept in (1, 0):
                async with upstream.post(provider.url, {}, b"") as answer:
                    async for _ in answer.chunks():
                        break
                assert upstream.pool.counts[1] == kept
            assert provider.connections == 1
            await provider.gone()

    play(scenario())


def test_a_wait_for_a_part_can_be_given_up_and_taken_up_again(play: Play) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(CHUNKED)
            await asyncio.sleep(0.1)
            await visit.say(chunk(b"late") + b"0\r\n\r\n")

        async with (
            raw_provider(script) as provider,
            pooled() as upstream,
            upstream.post(provider.url, {}, b"") as answer,
        ):
            chunks = answer.chunks()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(chunks), 0.02)
            assert [part async for part in chunks] == [b"late"]

    play(scenario())


STAGES = [
    b"HTTP/1.1 200",
    OK + b"content-length: 9\r\n\r\n",
    OK + b"content-length: 9\r\n\r\nabc",
    CHUNKED + chunk(b"a"),
]


@pytest.mark.parametrize("said", STAGES)
def test_a_request_that_is_given_up_closes_its_connection_and_leaves_nothing(play: Play, said: bytes) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(said)
            await visit.wait_for_the_end()

        async with raw_provider(script) as provider, pooled() as upstream:
            for after_seconds in (0, 0.001, 0.01, 0.05):
                asking = [asyncio.create_task(asked(upstream, provider)) for _ in range(5)]
                await asyncio.sleep(after_seconds)
                for task in asking:
                    task.cancel()
                assert all(
                    isinstance(error, asyncio.CancelledError)
                    for error in await asyncio.gather(*asking, return_exceptions=True)
                )
            await provider.gone()
            assert upstream.pool.counts == (0, 0, 0)

    gc.collect()
    gc.disable()
    try:
        play(scenario())
        assert not [held for held in gc.get_objects() if isinstance(held, Exchange | Reading)]
    finally:
        gc.enable()


def test_an_answer_that_was_put_away_is_not_read_on(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider, pooled() as upstream:
            async with upstream.post(provider.url, {}, b"") as answer:
                pass
            with pytest.raises(BrokenOff):
                await answer.body()

    play(scenario())


def test_closing_a_pool_breaks_off_what_is_under_way(play: Play) -> None:
    async def scenario() -> None:
        heard = asyncio.Event()

        async def script(visit: Visit) -> None:
            heard.set()
            await visit.wait_for_the_end()

        async with raw_provider(script) as provider, pooled() as upstream:
            asking = asyncio.create_task(asked(upstream, provider))
            await heard.wait()
            await upstream.close()
            with pytest.raises(BrokenOff, match="stopping"):
                await asking
            with pytest.raises(NotSent, match="stopping"):
                await asked(upstream, provider)

    play(scenario())


def test_an_answer_before_the_request_has_gone_is_given_and_the_connection_closed(play: Play) -> None:
    async def scenario() -> None:
        over, closed = asyncio.Event(), asyncio.Event()

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno")
            await over.wait()
            writer.transport.abort()
            closed.set()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1024)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with pooled() as upstream:
            async with upstream.post(url, {}, bytes(30_000_000)) as answer:
                assert (answer.status, await answer.body()) == (413, b"no")
            assert upstream.pool.counts[1] == 0
        over.set()
        await closed.wait()
        server.close()

    play(scenario())
