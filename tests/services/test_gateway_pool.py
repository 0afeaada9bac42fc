from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway_svc.providers import BrokenOff, NotSent
from gateway_svc.providers.http1.addresses import Address, Addresses
from gateway_svc.providers.http1.pool import Limits, Pool, with_alpn
from gateway_svc.providers.http1.request import Origin
from mesh import certificates, children
from mesh.clock import SystemClock
from mesh.home import Home
from tests.fakes.raw_provider import Visit, raw_provider
from tests.services.http1_running import HELLO, LOOPS, OK, Play, asked, play_on, pooled, saying


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


def few(per_origin: int, **more: Any) -> Limits:
    return Limits(**{"silence_seconds": 5, "turn_seconds": 20, "connections_per_origin": per_origin, **more})


def test_five_hundred_requests_share_a_small_pool(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider, pooled(few(7)) as upstream:
            bodies = await asyncio.gather(*(asked(upstream, provider) for _ in range(500)))
            assert bodies == [b"hello"] * 500
            assert (provider.connections, len(provider.requests)) == (7, 500)

    play(scenario())


def test_whoever_waits_longest_is_next(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider, pooled(few(1)) as upstream:
            bodies = [b"%d" % number for number in range(20)]
            await asyncio.gather(*(asked(upstream, provider, body) for body in bodies))
            assert [request.rpartition(b"\r\n")[2] for request in provider.requests] == bodies

    play(scenario())


async def silent(visit: Visit) -> None:
    await visit.wait_for_the_end()


def test_a_request_that_gets_no_turn_in_time_was_not_sent(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(silent) as provider, pooled(few(1, turn_seconds=0.1)) as upstream:
            first = asyncio.create_task(asked(upstream, provider))
            await asyncio.sleep(0.05)
            with pytest.raises(NotSent, match="came free"):
                await asked(upstream, provider)
            assert len(provider.requests) == 1
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    play(scenario())


def test_only_so_many_requests_wait(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(silent) as provider, pooled(few(1, waiting=3)) as upstream:
            asking = [asyncio.create_task(asked(upstream, provider)) for _ in range(4)]
            await asyncio.sleep(0.05)
            with pytest.raises(NotSent, match="too many"):
                await asked(upstream, provider)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    play(scenario())


@pytest.mark.parametrize("given_up", [(0,), (1, 2), (0, 1, 2, 3), (3,)])
def test_a_turn_that_is_given_up_goes_to_the_next(play: Play, given_up: tuple[int, ...]) -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def script(visit: Visit) -> None:
            await go.wait()
            await visit.say(HELLO)

        async with raw_provider(script) as provider, pooled(few(2)) as upstream:
            asking = [asyncio.create_task(asked(upstream, provider)) for _ in range(8)]
            await asyncio.sleep(0.05)
            go.set()
            for number in given_up:
                asking[number].cancel()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            assert [answer == b"hello" for answer in answers] == [number not in given_up for number in range(8)]
            assert await asyncio.gather(*(asked(upstream, provider) for _ in range(8))) == [b"hello"] * 8
            assert provider.open_most <= 2 + len(given_up)

    play(scenario())


def test_a_turn_given_to_whoever_gives_up_in_the_same_moment_goes_on(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider:
            pool, origin = Pool(few(1), Told("127.0.0.1"), None), Origin(False, "three.example", provider.port)
            first = await pool.acquire(origin)
            waiting = asyncio.create_task(pool.acquire(origin))
            await asyncio.sleep(0)
            first.over(reusable=True, keep_seconds=None)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await asyncio.wait_for(pool.acquire(origin), 1) is first
            first.over(reusable=True, keep_seconds=None)
            await pool.close()

    play(scenario())


def test_one_origins_requests_leave_connections_to_the_others_and_idle_ones_make_room(play: Play) -> None:
    async def scenario() -> None:
        async with (
            raw_provider(silent) as stuck,
            raw_provider(saying(HELLO)) as one,
            raw_provider(saying(HELLO)) as other,
            pooled(few(2, connections=3)) as upstream,
        ):
            asking = [asyncio.create_task(asked(upstream, stuck)) for _ in range(5)]
            await asyncio.sleep(0.05)
            for _ in range(3):
                assert [await asked(upstream, one), await asked(upstream, other)] == [b"hello"] * 2
                assert upstream.pool.counts[0] == 3
            assert (stuck.connections, one.connections, other.connections) == (2, 3, 3)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    play(scenario())


def test_an_origin_that_is_not_asked_any_more_is_forgotten(play: Play) -> None:
    async def scenario() -> None:
        async with pooled() as upstream:
            for _ in range(5):
                url = f"http://127.0.0.1:{children.free_port()}/"
                with pytest.raises(NotSent):
                    async with upstream.post(url, {}, b""):
                        pytest.fail("it answered")
            assert upstream.pool.counts == (0, 0, 0)

    play(scenario())


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home.open(tmp_path_factory.mktemp("home"))
    certificates.ensure(home, SystemClock())
    return home.tls


def serving(tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "gateway.pem", tls / "gateway.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def trusting(tls: Path) -> ssl.SSLContext:
    return with_alpn(ssl.create_default_context(cafile=str(tls / "ca.pem")))


def test_a_provider_is_asked_over_tls_in_http_1_1(play: Play, tls: Path) -> None:
    async def scenario() -> None:
        spoken: list[str | None] = []

        async def script(visit: Visit) -> None:
            spoken.append(visit.writer.get_extra_info("ssl_object").selected_alpn_protocol())
            await visit.say(OK + b"content-length: 300000\r\n\r\n" + bytes(300_000))

        async with raw_provider(script, serving(tls)) as provider, pooled(tls=trusting(tls)) as upstream:
            for _ in range(3):
                assert len(await asked(upstream, provider, bytes(200_000))) == 300_000
            assert (spoken, provider.connections) == (["http/1.1"] * 3, 1)

    play(scenario())


def test_a_provider_that_dies_within_tls_broke_off(play: Play, tls: Path) -> None:
    async def scenario() -> None:
        async def script(visit: Visit) -> None:
            await visit.say(OK + b"content-length: 9\r\n\r\nabc")
            visit.cut()

        async with raw_provider(script, serving(tls)) as provider, pooled(tls=trusting(tls)) as upstream:
            with pytest.raises(BrokenOff):
                await asked(upstream, provider)

    play(scenario())


def test_a_request_over_tls_that_is_given_up_closes_its_connection(play: Play, tls: Path) -> None:
    async def scenario() -> None:
        async with raw_provider(silent, serving(tls)) as provider, pooled(tls=trusting(tls)) as upstream:
            for after_seconds in (0, 0.001, 0.003, 0.01, 0.1):
                asking = asyncio.create_task(asked(upstream, provider))
                await asyncio.sleep(after_seconds)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await provider.gone()
            assert upstream.pool.counts == (0, 0, 0)

    play(scenario())


def test_a_provider_that_nobody_vouches_for_was_sent_nothing(play: Play, tls: Path) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO), serving(tls)) as provider, pooled() as upstream:
            with pytest.raises(NotSent, match="SSLCertVerificationError"):
                await asked(upstream, provider)
            assert provider.requests == []

    play(scenario())


class Told(Addresses):
    """Names whose addresses the test gives."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(public_only=False)
        self.addresses = tuple(Address(socket.AF_INET, host) for host in hosts)

    async def of(self, host: str) -> tuple[Address, ...]:
        assert host == "three.example"
        return self.addresses


def test_a_provider_under_another_name_than_its_own_was_sent_nothing(play: Play, tls: Path) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO), serving(tls)) as provider:
            pool = Pool(few(1), Told("127.0.0.1"), trusting(tls))
            with pytest.raises(NotSent, match="SSLCertVerificationError"):
                await pool.acquire(Origin(is_tls=True, host="three.example", port=provider.port))
            await pool.close()
            assert provider.requests == []

    play(scenario())


def test_each_address_of_a_name_is_tried_within_the_time(play: Play) -> None:
    async def scenario() -> None:
        async with raw_provider(saying(HELLO)) as provider:
            limits = few(1, connect_seconds=1)
            # Nobody listens at the first, and the second, of a network for documentation, answers nothing at all.
            pool = Pool(limits, Told("127.0.0.3", "192.0.2.1", "127.0.0.1"), None)
            connection = await pool.acquire(Origin(is_tls=False, host="three.example", port=provider.port))
            assert connection.is_open
            connection.over(reusable=True, keep_seconds=None)
            await pool.close()

    play(scenario())
