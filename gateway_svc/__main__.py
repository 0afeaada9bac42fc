"""The gateway as a process."""

from __future__ import annotations

import gc

from gateway_svc import service
from gateway_svc.assembly import gateway
from gateway_svc.channels import channels
from gateway_svc.settings import Settings
from mesh import server
from mesh.settings import Runtime, load

YOUNG_MAX = 10_000  # objects that no collection has seen; Python's 700 are those of twenty completions


async def main() -> None:
    """Serve HTTP and gRPC until a signal."""
    runtime, settings = load(Runtime), load(Settings)
    server.prepare("gateway", runtime)
    async with channels(runtime) as opened, gateway(runtime, settings, opened) as built:
        resolve = service.Resolver(built.parts.db, opened.identity)
        rpc = server.Server(
            "gateway", runtime, service.registrations(built.parts.db, resolve, opened.ledger), built.parts.keys, resolve
        )
        _collect_rarely()
        await server.serve(rpc, built.workers, before_stop=(built.drain,))


def _collect_rarely() -> None:
    """Leave what was built so far out of all collections, and wait longer for them: they took a tenth of the time.

    What a completion leaves behind is freed by counting references; cycles, as failures make them, wait a little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)


if __name__ == "__main__":
    server.run(main())
