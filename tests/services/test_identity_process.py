from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mandate.identity.v1 import keys_pb2, keys_pb2_grpc
from mandate.identity.v1 import people_pb2 as pb
from mandate.identity.v1 import people_pb2_grpc as rpc
from mesh.client import call
from mesh.ports import grpc_port
from mesh.settings import Runtime
from mesh.testing import House
from tests.fakes.ledger import FakeLedger
from tests.services.identity_running import PASSWORD, SERVICES, fresh


def environment(house: House, runtime: Runtime, ledger: FakeLedger) -> dict[str, str]:
    house.home.ensure_key("identity")
    return {
        "MANDATE_ENV_FILE": "",
        "MANDATE_HOME": str(house.home.path),
        "MANDATE_BASE_PORT": str(runtime.base_port),
        "MANDATE_IDENTITY_DATABASE_URL": house.dsn("identity").reveal(),
        "MANDATE_REDIS_URL": house.redis_url.reveal(),
        "MANDATE_LEDGER_ADDRESS": ledger.address,
        "MANDATE_DRAIN_SECONDS": "5",
    }


@asynccontextmanager
async def process(environ: dict[str, str]) -> AsyncGenerator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "identity_svc",
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def ready(channel: grpc.aio.Channel) -> None:
    """Wait until health says that the process serves, both to who asks and to who watches."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(30):
        answer = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert await watched.read() == answer
    watched.cancel()
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_process_serves_and_leaves_at_once_when_told_to(house: House) -> None:
    ledger, runtime = FakeLedger(), house.runtime
    address = f"127.0.0.1:{grpc_port('identity', runtime)}"
    async with (
        ledger.serving(house),
        process(environment(house, runtime, ledger)) as child,
        house.channel("identity", address, as_service="edge", services=SERVICES) as channel,
    ):
        await ready(channel)
        request = pb.SignUpRequest(email=f"{fresh()}@example.com", password=PASSWORD, name="Ada")
        session = await call(rpc.PeopleServiceStub(channel).SignUp, request)
        assert session.access_token.startswith("mses_")
        stream = keys_pb2_grpc.KeyServiceStub(channel).Watch(keys_pb2.WatchRequest())
        await stream.read()
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(4):  # a stream that never ends must not hold it up
            output, _ = await child.communicate()
        stream.cancel()
    assert child.returncode == 0, output.decode()
    assert PASSWORD not in output.decode()
    assert session.access_token not in output.decode()
