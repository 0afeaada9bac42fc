from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway_svc.http import connection, connections
from mesh.clock import monotonic_ms
from tests.services.gateway_running import Mesh, RunningGateway, gateway_running

HELLO: dict[str, Any] = {"model": "mock-flat", "messages": [{"role": "user", "content": "Hello, mock"}]}
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SECRET = b"cpk_a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


class Wire:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ")[1]), headers, body

    async def ends(self) -> bool:
        """Wait for the far side to close; say whether it said nothing more."""
        async with asyncio.timeout(5):
            try:
                return await self._reader.read() == b""
            except ConnectionResetError:
                return True


@asynccontextmanager
async def wire(gateway: RunningGateway) -> AsyncGenerator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def fails(line: Wire, status: int, code: str) -> dict[str, str]:
    """See a whole answer in OpenAI's shape, and then the end."""
    told, headers, body = await line.answer()
    error = json.loads(body)["error"]
    assert (told, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-mandate-instance"] == "gateway-0"
    assert await line.ends()
    return headers


@pytest.mark.parametrize(
    ("status", "code", "sent"),
    [
        pytest.param(400, "bad_request", b"no HTTP at all\r\n\r\n", id="no HTTP"),
        pytest.param(400, "bad_request", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(400, "bad_request", b"G\x00T / HTTP/1.1\r\n\r\n", id="no method"),
        pytest.param(400, "bad_request", b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", id="no such version"),
        pytest.param(400, "bad_request", b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n", id="no URL"),
        pytest.param(400, "bad_request", GET + b"authorization Bearer " + SECRET + b"\r\n\r\n", id="no colon"),
        pytest.param(400, "bad_request", GET + b"x-api-key: " + SECRET + b"\0\r\n\r\n", id="a NUL"),
        pytest.param(400, "bad_request", POST + b"content-length: 1, 2\r\n\r\n", id="two lengths"),
        pytest.param(400, "bad_request", POST + b"content-length: -1\r\n\r\n", id="a negative length"),
        pytest.param(
            400,
            "bad_request",
            POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            id="a length and chunks",
        ),
        pytest.param(400, "bad_request", GET + b"x: y\r\n" * 200 + b"\r\n", id="too many headers"),
        pytest.param(431, "headers_too_large", GET + b"x: " + b"y" * 20_000 + b"\r\n\r\n", id="a long header"),
        pytest.param(431, "headers_too_large", b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\n\r\n", id="a long URL"),
        pytest.param(417, "expectation_failed", POST + b"expect: a-miracle\r\n\r\n", id="a wrong Expect"),
        pytest.param(
            417, "expectation_failed", b"GET /nowhere HTTP/1.1\r\nhost: x\r\nexpect: y\r\n\r\n", id="Expect nowhere"
        ),
    ],
)
async def test_what_http_itself_refuses_is_told_in_our_shape(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture, status: int, code: str, sent: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    async with wire(gateway) as line:
        line.send(sent)
        await fails(line, status, code)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert SECRET.decode() not in " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)


async def test_a_second_request_that_is_no_http_ends_the_connection(gateway: RunningGateway) -> None:
    async with wire(gateway) as line:
        line.send(GET + b"\r\n")
        assert (await line.answer())[0] == 200
        line.send(b"nonsense\r\n\r\n")
        await fails(line, 400, "bad_request")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS_MAX", 0.4)


@pytest.mark.usefixtures("hasty")
async def test_a_head_that_trickles_in_is_cut_off(gateway: RunningGateway) -> None:
    async with wire(gateway) as line:
        started_ms = monotonic_ms()
        for byte in GET[:12]:
            line.send(bytes([byte]))
            await asyncio.sleep(0.03)
        await fails(line, 408, "head_too_slow")
        assert monotonic_ms() - started_ms < 1_000


@pytest.mark.usefixtures("hasty")
async def test_who_never_asks_is_cut_off_without_a_word(gateway: RunningGateway) -> None:
    async with wire(gateway) as line:
        assert await line.ends()


@pytest.mark.usefixtures("hasty")
async def test_between_requests_a_connection_may_be_silent_but_not_slow(gateway: RunningGateway) -> None:
    async with wire(gateway) as line:
        for _ in range(2):
            line.send(GET + b"\r\n")
            assert (await line.answer())[0] == 200
            await asyncio.sleep(0.6)
        line.send(GET)
        await fails(line, 408, "head_too_slow")


@pytest.mark.usefixtures("hasty")
async def test_a_head_is_slow_and_not_its_answer(mesh: Mesh, gateway: RunningGateway) -> None:
    tenant = await mesh.tenant()
    body = json.dumps(HELLO).encode()
    async with wire(gateway) as line:
        line.send(POST + f"authorization: Bearer {tenant.key}\r\ncontent-length: {len(body)}\r\n".encode())
        line.send(b"x-mock: latency_ms=700\r\n\r\n" + body[:10])
        await asyncio.sleep(0.6)
        line.send(body[10:])
        assert (await line.answer())[0] == 200


async def test_an_idle_connection_is_closed(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS_MAX", 0.3)
    async with gateway_running(mesh, tmp_path) as impatient, wire(impatient) as line:
        line.send(GET + b"\r\n")
        assert (await line.answer())[0] == 200
        started_ms = monotonic_ms()
        assert await line.ends()
        assert 200 < monotonic_ms() - started_ms < 2_000


@asynccontextmanager
async def full(mesh: Mesh, folder: Path) -> AsyncGenerator[tuple[RunningGateway, list[Wire]]]:
    """Run a gateway for three connections at once, all taken."""
    async with gateway_running(mesh, folder, connections_max=3) as small, contextlib.AsyncExitStack() as stack:
        await small.session.connector.close()  # pyright: ignore[reportOptionalMemberAccess]  # what asked whether it is ready
        lines = [await stack.enter_async_context(wire(small)) for _ in range(3)]
        for line in lines:
            line.send(GET + b"\r\n")
            assert (await line.answer())[0] == 200
        yield small, lines


async def test_one_connection_too_many_is_told_to_come_back(mesh: Mesh, tmp_path: Path) -> None:
    async with full(mesh, tmp_path) as (small, lines):
        for _ in range(3):
            async with wire(small) as extra:
                extra.send(POST + b"content-length: 100000\r\n\r\n" + b"x" * 100_000)
                headers = await fails(extra, 503, "overloaded")
                assert headers["retry-after"] == "1"
        lines[0].send(GET + b"\r\n")
        assert (await lines[0].answer())[0] == 200


async def test_a_refused_client_that_sends_all_before_it_listens_hears_why(mesh: Mesh, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with full(mesh, tmp_path) as (small, _):
        with socket.socket() as busy:
            busy.setblocking(False)
            await loop.sock_connect(busy, ("127.0.0.1", int(small.url.rpartition(":")[2])))
            for _ in range(5):
                await loop.sock_sendall(busy, POST + b"x: y\r\n" * 100)
                await asyncio.sleep(0.05)
            assert (await loop.sock_recv(busy, 4096)).startswith(b"HTTP/1.1 503 ")


async def test_a_connection_that_ends_makes_room(mesh: Mesh, tmp_path: Path) -> None:
    async with full(mesh, tmp_path) as (small, lines):
        lines[0].send(GET + b"connection: close\r\n\r\n")
        await lines[0].answer()
        assert await lines[0].ends()
        async with wire(small) as next_one:
            next_one.send(GET + b"\r\n")
            assert (await next_one.answer())[0] == 200
            async with wire(small) as extra:
                extra.send(GET + b"\r\n")
                await fails(extra, 503, "overloaded")


async def test_a_refused_connection_that_asks_nothing_ends_within_seconds(mesh: Mesh, tmp_path: Path) -> None:
    async with full(mesh, tmp_path) as (small, _), wire(small) as silent:
        assert await silent.ends()


async def test_no_more_are_answered_than_can_be(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REFUSED_MAX", 1)
    async with full(mesh, tmp_path) as (small, lines):
        async with wire(small) as first, wire(small) as second:
            assert await second.ends()
            first.send(GET + b"\r\n")
            await fails(first, 503, "overloaded")
        async with wire(small) as extra:  # those that were cut off took nobody's place away, nor gave one
            extra.send(GET + b"\r\n")
            await fails(extra, 503, "overloaded")
        lines[2].send(GET + b"\r\n")
        assert (await lines[2].answer())[0] == 200


LIMITED = """
import resource, sys
wanted, soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from gateway_svc.http.descriptors import connections_within
print(connections_within(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("wanted", "soft", "hard", "allowed", "raised"),
    [
        pytest.param(1_000, 256, 4_096, 1_000, 2_000, id="raised as far as needed"),
        pytest.param(1_000, 256, 1_024, 512, 1_024, id="raised as far as may be"),
        pytest.param(1_000, 3_000, 4_096, 1_000, 3_000, id="high enough"),
        pytest.param(10, 256, 256, 10, 256, id="few are wanted"),
    ],
)
async def test_clients_get_at_most_half_of_the_descriptors(
    wanted: int, soft: int, hard: int, allowed: int, raised: int
) -> None:
    limits = (str(number) for number in (wanted, soft, hard))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIMITED, *limits, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await child.communicate()
    assert said.decode().split() == [str(allowed), str(raised)]
