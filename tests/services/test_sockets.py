from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mesh import children, server, sockets
from mesh.sockets import Claim, PortError
from tests.services.gateway_running import Mesh, gateway_running

ESTABLISHED, KEPT_ALIVE = "01", "02"  # states and timers of /proc/net/tcp


def timer_of(port: int, peer_port: int) -> str:
    """Return which timer runs on the server's side of a connection."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        if (local[-4:], remote[-4:], state) == (f"{port:04X}", f"{peer_port:04X}", ESTABLISHED):
            return timer[:2]
    raise AssertionError("no such connection")


async def test_a_client_that_vanishes_without_a_word_is_asked_for(mesh: Mesh, tmp_path: Path) -> None:
    async with gateway_running(mesh, tmp_path) as gateway:
        port = urlsplit(gateway.url).port or 0
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert (await gateway.get("/health")).status == 200  # by then the connection before it is accepted
            assert timer_of(port, client.getsockname()[1]) == KEPT_ALIVE


def test_what_is_accepted_has_the_times_of_its_listener() -> None:
    listener = sockets.listen(Claim("127.0.0.1", children.free_port(), "test"))
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        found = {option: accepted.getsockopt(socket.IPPROTO_TCP, option) for option in sockets.KEEPALIVE}
    assert found == sockets.KEEPALIVE


def test_a_port_that_is_taken_is_named() -> None:
    with sockets.listen(Claim("127.0.0.1", children.free_port(), "first")) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortError, match=rf"port {port} \(second\) is in use"):
            sockets.listen(Claim("127.0.0.1", port, "second"))


@pytest.mark.parametrize("of_a_loop", [False, True])
def test_a_service_whose_port_is_taken_says_so_in_a_line(
    capsys: pytest.CaptureFixture[str], *, of_a_loop: bool
) -> None:
    async def main() -> None:
        claim = Claim("127.0.0.1", port, "test HTTP")
        if of_a_loop:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(sockets.listen, claim))
        else:
            sockets.listen(claim)

    with sockets.listen(Claim("127.0.0.1", children.free_port(), "first")) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            server.run(main())
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"port {port} (test HTTP) is in use; nothing was started\n"
