"""Run identity: `python -m identity_svc`."""

from __future__ import annotations

from identity_svc.parts import SERVICE, assembled
from identity_svc.service import registrations, resolver
from identity_svc.settings import Identity
from mesh.server import Server, prepare, run, serve
from mesh.settings import Runtime, load


async def main() -> None:
    """Serve until told to stop."""
    runtime, settings = load(Runtime), load(Identity)
    prepare(SERVICE, runtime)
    async with assembled(runtime, settings) as parts:
        server = Server(SERVICE, runtime, registrations(parts), parts.keys, resolver(parts))
        await serve(server, parts.workers, before_stop=(parts.hub.close,))


if __name__ == "__main__":
    run(main())
