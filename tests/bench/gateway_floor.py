"""What a governed completion cannot go below on this machine: its round trips, each with nothing in it.

Run by `make bench-gateway` as a process, with the home and base port of a running mesh, the echo's port and how many
seconds each part is measured; prints milliseconds as JSON. A commit is asked for from where the ledger runs, the others
from where the gateway runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import asyncpg
import uvloop

from mandate.ledger.v1 import charges_pb2, charges_pb2_grpc
from mesh import children, client, ids, ports
from mesh.embedded import postgres
from mesh.embedded.provision import addresses
from mesh.embedded.valkey import Valkey
from mesh.home import Home
from mesh.ids import Kind
from mesh.services import POSTGRES_OFFSET, VALKEY_OFFSET
from mesh.tls import Certificates
from tests.bench.gateway_peers import python_environment
from tests.bench.gateway_processes import MEASURED_CORE, OTHERS_CORE, pin, process

# A commit that has an id and one record to flush; one without any record is not waited for.
COMMIT = "SELECT pg_logical_emit_message(true, 'bench', '')"


@dataclass(frozen=True)
class Floor:
    """Round trips, in milliseconds at the median."""

    commit_ms: float
    stream_ms: float
    cache_ms: float

    @property
    def governed_ms(self) -> float:
        """What a hold, its settlement and a rate limit take where each is one round trip."""
        return 2 * (self.commit_ms + self.stream_ms) + self.cache_ms


@asynccontextmanager
async def echo(home: Path, logs: Path) -> AsyncGenerator[int]:
    """Run the echo of the ledger's contract with a mesh's certificates; yield its port."""
    base_port = children.free_port() - ports.GRPC["ledger"]
    environment = python_environment() | {
        "MANDATE_HOME": str(home),
        "MANDATE_BASE_PORT": str(base_port),
        "MANDATE_ENV_FILE": "",
        "MANDATE_DRAIN_SECONDS": "1",
    }
    port = base_port + ports.GRPC["ledger"]
    argv = (sys.executable, "-m", "tests.bench.echo")
    async with process(argv, port, OTHERS_CORE, logs / "echo.log", environment):
        yield port


async def floor(home: Path, base_port: int, echo_port: int, seconds: float) -> Floor:
    """Measure in a process of its own, which may go where the gateway runs."""
    values = (str(home), str(base_port), str(echo_port), str(seconds))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.gateway_floor", *values, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(child.communicate(), 60 + 4 * seconds)
    assert child.returncode == 0
    return Floor(**json.loads(printed))


async def _repeated(trip: Callable[[], Awaitable[object]], seconds: float) -> float:
    taken: list[float] = []
    started = time.perf_counter()
    while (begun := time.perf_counter()) - started < seconds or not taken:
        await trip()
        taken.append((time.perf_counter() - begun) * 1000)
    return median(taken)


async def _commit(home: Home, base_port: int, seconds: float) -> float:
    maintenance = postgres.owner_dsn(base_port + POSTGRES_OFFSET, home.secret(postgres.SUPERUSER))
    connection = await asyncpg.connect(addresses(maintenance, {}).owner_dsn.reveal())
    try:
        return await _repeated(partial(connection.fetchval, COMMIT), seconds)
    finally:
        await connection.close()


async def _beat(home: Home, echo_port: int, seconds: float) -> float:
    channel = client.connect(
        "ledger",
        f"127.0.0.1:{echo_port}",
        Certificates(home.tls, "gateway"),
        charges_pb2.DESCRIPTOR.services_by_name.values(),
    )
    async with client.connected(channel):
        stream = charges_pb2_grpc.ChargeServiceStub(channel).Charge()
        await stream.write(charges_pb2.ChargeRequest(holder_id=ids.new(Kind.HOLDER), beat=1))
        await stream.read()

        async def trip() -> None:
            await stream.write(charges_pb2.ChargeRequest(beat=1))
            answer = await stream.read()
            assert isinstance(answer, charges_pb2.ChargeResponse), "the stream ended"

        found = await _repeated(trip, seconds)
        stream.cancel()
        return found


async def _ping(home: Home, base_port: int, seconds: float) -> float:
    server = Valkey.of(home, base_port + VALKEY_OFFSET)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"AUTH {server.password.reveal()}\r\n".encode())
    assert await reader.readline() == b"+OK\r\n"

    async def trip() -> None:
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"

    try:
        return await _repeated(trip, seconds)
    finally:
        writer.close()


async def main(home: Home, base_port: int, echo_port: int, seconds: float) -> None:
    """Print the floor."""
    commit_ms = await _commit(home, base_port, seconds)
    pin(os.getpid(), MEASURED_CORE)
    stream_ms, cache_ms = await _beat(home, echo_port, seconds), await _ping(home, base_port, seconds)
    print(json.dumps({"commit_ms": commit_ms, "stream_ms": stream_ms, "cache_ms": cache_ms}))


if __name__ == "__main__":
    uvloop.run(main(Home.open(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
