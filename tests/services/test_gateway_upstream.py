from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway_svc.providers import BrokenOff, NotSent
from gateway_svc.providers.upstream import Upstream, is_public
from mesh import children

ADDRESSES = [
    ("93.184.215.14", True),
    ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
    ("127.0.0.1", False),
    ("10.1.2.3", False),
    ("172.16.0.1", False),
    ("192.168.1.1", False),
    ("169.254.169.254", False),
    ("100.64.0.1", False),
    ("0.0.0.1", False),
    ("224.0.0.1", False),
    ("::1", False),
    ("::ffff:127.0.0.1", False),
    ("64:ff9b::7f00:1", False),
    ("2002:7f00:1::", False),
    ("fe80::1%eth0", False),
    ("fd00::1", False),
    ("localhost", False),
    ("64:ff9b::5db8:d70e", True),  # an IPv4 address of the open internet, behind NAT64
    ("64:ff9b:1::5db8:d70e", False),
    ("::ffff:93.184.215.14", True),
    ("::127.0.0.1", False),
    ("::93.184.215.14", False),
    ("::ffff:0:127.0.0.1", False),
    ("fec0::1", False),
    ("5f00::1", False),
    ("4000::1", False),
    ("100::1", False),
    ("100:0:0:1::1", False),
    ("2001:0:7f00:1::1", False),
    ("2001:2::1", False),
    ("2001:10::1", False),
    ("2001:20::1", False),
    ("2001:db8::1", False),
    ("2002:5db8:d70e::1", False),
    ("3fff::1", False),
    ("2001:200::1", True),
    ("ff0e::1", False),
    ("192.0.0.8", False),
    ("192.0.0.9", False),
    ("192.0.0.170", False),
    ("192.0.2.1", False),
    ("192.88.99.1", False),
    ("198.18.0.1", False),
    ("198.51.100.1", False),
    ("203.0.113.1", False),
    ("240.0.0.1", False),
    ("255.255.255.255", False),
]


@pytest.mark.parametrize(("address", "public"), ADDRESSES)
def test_only_addresses_of_the_open_internet_are_public(address: str, *, public: bool) -> None:
    assert is_public(address) is public


@pytest.fixture
async def tenants() -> AsyncIterator[Upstream]:
    upstream = Upstream(silence_seconds_max=1, public_only=True)
    yield upstream
    await upstream.close()


@pytest.fixture
async def operators() -> AsyncIterator[Upstream]:
    upstream = Upstream(silence_seconds_max=1, public_only=False)
    yield upstream
    await upstream.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/v1",
        "https://localhost/v1",
        "https://[::1]/v1",
        "https://2130706433/v1",
        "https://127.1/v1",
        "https://\N{CIRCLED DIGIT ONE}27.0.0.1/v1",
        "https://127\N{IDEOGRAPHIC FULL STOP}0.0.1/v1",
        "https://[::1",
        "https://0x7f000001/v1",
        "http://example.com/v1",
        "https:///v1",
    ],
)
async def test_a_tenants_address_that_is_private_is_never_asked(tenants: Upstream, url: str) -> None:
    with pytest.raises(NotSent):
        async with tenants.post(url, {}, b"{}"):
            pytest.fail("it was asked")


async def test_a_port_where_nobody_listens_was_sent_nothing(operators: Upstream) -> None:
    with pytest.raises(NotSent):
        async with operators.post(f"http://127.0.0.1:{children.free_port()}/", {}, b"{}"):
            pytest.fail("somebody answered")


async def test_a_provider_that_stays_silent_broke_off(operators: Upstream) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await asyncio.sleep(3)
        return response

    app = web.Application()
    app.router.add_post("/", silent)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with pytest.raises(BrokenOff):
        async with operators.post(f"http://127.0.0.1:{port}/", {}, b"{}") as answer:
            await answer.body()
    await runner.cleanup()
