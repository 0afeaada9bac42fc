"""The gateway as a process."""

from __future__ import annotations

from gateway_svc import service
from gateway_svc.assembly import gateway
from gateway_svc.channels import channels
from gateway_svc.settings import Settings
from mesh import server
from mesh.settings import Runtime, load


async def main() -> None:
    """Serve HTTP and gRPC until a signal."""
    runtime, settings = load(Runtime), load(Settings)
    server.prepare("gateway", runtime)
    async with channels(runtime) as opened, gateway(runtime, settings, opened) as built:
        resolve = service.Resolver(built.parts.db, opened.identity)
        rpc = server.Server(
            "gateway", runtime, service.registrations(built.parts.db, resolve, opened.ledger), built.parts.keys, resolve
        )
        await server.serve(rpc, built.workers, before_stop=(built.drain,))


if __name__ == "__main__":
    server.run(main())
