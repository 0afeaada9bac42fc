"""Answers on their way to clients that do not read them, and those that fail when they have begun."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway_svc.http import answers
from gateway_svc.http.answers import Response, Stream
from gateway_svc.http.app import Application
from gateway_svc.http.completions import Client
from gateway_svc.http.connections import Connections
from gateway_svc.http.requests import Request
from mesh.errors import Unavailable
from mesh.secret import Secret
from tests.fakes.raw_provider import Visit, raw_provider
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, endpoints_of_nothing, gateway_running
from tests.services.identity_running import fresh

LARGE: dict[str, Any] = {
    "model": "mock-model",
    "n": 16,
    "max_tokens": 80_000,
    "messages": [{"role": "user", "content": "long"}],
}
LARGE_ORDERS = "tokens=80000"
UNREAD = 40
MEBIBYTE = 1024 * 1024


@pytest.fixture
async def gateway(mesh: Mesh, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path) as running:
        yield running


@pytest.fixture
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(10**12)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def posted(tenant: Tenant, body: bytes, **headers: str) -> bytes:
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        f"authorization: Bearer {tenant.key}",
        f"content-length: {len(body)}",
        *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def deaf(port: int, request: bytes) -> socket.socket:
    """Ask and read nothing."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(asking, ("127.0.0.1", port))
    await loop.sock_sendall(asking, request)
    return asking


async def rest(asked: socket.socket) -> bytes:
    """Read what the system still holds for it, up to the end of the connection."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.get_running_loop().sock_recv(asked, 65536):
            said += part
    asked.close()
    return said


def port_of(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


async def test_answers_that_nobody_reads_take_little_memory_and_end(
    gateway: RunningGateway, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, body = fresh("key"), json.dumps(LARGE).encode()
    first = await gateway.ask(tenant, body, x_mock=LARGE_ORDERS, idempotency_key=key)
    assert (first.status, len(first.body) > 2 * MEBIBYTE) == (200, True), len(first.body)
    monkeypatch.setattr(answers, "WRITE_SECONDS_MAX", 2)
    before = resident_bytes()
    request = posted(tenant, body, idempotency_key=key, x_mock=LARGE_ORDERS, connection="close")
    deaf_ones = [await deaf(port_of(gateway), request) for _ in range(UNREAD)]
    most = before
    for _ in range(15):
        await asyncio.sleep(0.1)
        most = max(most, resident_bytes())
    assert (
        most - before < UNREAD * len(first.body) / 2
    )  # each of them whole, and in a buffer too, would be four times that
    async with asyncio.timeout(10):
        heard = await asyncio.gather(*(rest(each) for each in deaf_ones))
    assert {said.split(b" ", 2)[1] for said in heard} <= {b"200", b"503"}
    assert all(len(said) < len(first.body) for said in heard)


async def first_status(gateway: RunningGateway, tenant: Tenant, status: int) -> bool:
    """Ask until an answer has this status."""
    for _ in range(200):
        if (await gateway.ask(tenant, {**LARGE, "n": 1, "max_tokens": 1})).status == status:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_whole_answer_that_is_not_read_is_cut_off_and_its_seat_free(
    mesh: Mesh, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "WRITE_SECONDS_MAX", 0.5)
    async with gateway_running(mesh, tmp_path, in_flight_max=1) as small:
        unread = await deaf(port_of(small), posted(tenant, json.dumps(LARGE).encode(), x_mock=LARGE_ORDERS))
        assert await first_status(small, tenant, 503)  # its seat is taken
        assert await first_status(small, tenant, 200)
        async with asyncio.timeout(5):
            assert b" 200 " in (await rest(unread))[:20]


async def test_other_answers_that_are_not_read_end_too(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "WRITE_SECONDS_MAX", 0.5)
    unread = await deaf(port_of(gateway), b"GET /metrics HTTP/1.1\r\nhost: %b\r\n\r\n" % (b"x" * 500) * 500)
    await asyncio.sleep(1.5)
    async with asyncio.timeout(5):
        heard = await rest(unread)
    assert 0 < heard.count(b"HTTP/1.1 200") < 500


async def test_a_whole_answer_leaves_its_connection_open_to_the_next(gateway: RunningGateway, tenant: Tenant) -> None:
    request = posted(tenant, json.dumps({**LARGE, "n": 1, "max_tokens": 16}).encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
    for _ in range(2):
        writer.write(request)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["usage"]["completion_tokens"] == 16
    writer.close()


@asynccontextmanager
async def failing(error: Exception, *, said: bytes) -> AsyncGenerator[int]:
    """Serve an answer that begins, says something and fails; give its port."""

    async def handler(request: Request) -> Response | Stream:
        client = Client(request, "gateway-0")
        await client.begin({})
        if said:
            await client.write(said)
        raise error

    app = Application(endpoints_of_nothing(), instance="gateway-0", body_bytes_max=1)
    app.routes.add("GET", "/", handler)
    made = Connections(app, 10)
    listener = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    await made.close(1)


@pytest.mark.parametrize("said", [b"", b"data: 1\n\n"])
@pytest.mark.parametrize("error", [TypeError("a bug"), Unavailable("UPSTREAM_CUT", "it broke off")])
async def test_a_failure_after_the_head_ends_the_connection_without_another_head(
    error: Exception, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with failing(error, said=said) as port:
        async with asyncio.timeout(5):
            asked = await deaf(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            heard = await rest(asked)
    assert heard.count(b"HTTP/1.1") <= 1
    assert not heard.endswith(b"0\r\n\r\n")  # it does not pass for whole
    assert "http.bug" in caplog.text


async def test_nonsense_in_mid_stream_is_followed_by_no_second_head(mesh: Mesh, tenant: Tenant, tmp_path: Path) -> None:
    events = [
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}},
        {
            "type": "content_block_start",
            "index": {"a": 1},
            "content_block": {"type": "tool_use", "id": "a", "name": "b", "input": {}},
        },
    ]

    async def nonsense(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event in events:
            await visit.say(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.05)
        visit.cut()

    asking = {"model": "claude-sonnet-5", "max_tokens": 16, "stream": True, "messages": LARGE["messages"]}
    async with raw_provider(nonsense) as provider:
        settings: dict[str, Any] = {
            "anthropic_api_key": Secret("sk-ant-1"),
            "anthropic_base_url": provider.url.removesuffix("/v1"),
        }
        async with gateway_running(mesh, tmp_path, **settings) as gateway, asyncio.timeout(10):
            asked = await deaf(port_of(gateway), posted(tenant, json.dumps(asking).encode()))
            heard = b""
            while not heard.endswith(b"0\r\n\r\n"):
                part = await asyncio.get_running_loop().sock_recv(asked, 65536)
                heard += part
                if not part:
                    break
            asked.close()
    assert heard.count(b"HTTP/1.1") == 1
