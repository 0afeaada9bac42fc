"""`python -m mesh.healthcheck SERVICE`: whether the replica in this container is ready, as an exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from mesh.ports import Layout
from mesh.probes import grpc_health, http_ready
from mesh.services import named
from mesh.settings import Runtime, load
from mesh.tls import Certificates


def main(service: str) -> int:
    """Return 0 when it is ready, else 1."""
    runtime = load(Runtime)
    layout, row = Layout.of(runtime), named(service)
    http_port, grpc_port = layout.http(row), layout.grpc(row, runtime.replica)
    if http_port is not None:
        probe = http_ready(layout.near_host, http_port)
    elif grpc_port is not None:
        probe = grpc_health(Certificates(runtime.tls, service), layout.near_host, grpc_port)
    else:
        return 1
    return 0 if asyncio.run(_asked(probe)) else 1


async def _asked(probe: Callable[[], Awaitable[bool]]) -> bool:
    return await probe()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
