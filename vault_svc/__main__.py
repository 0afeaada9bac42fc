"""Run the vault: `python -m vault_svc`."""

from __future__ import annotations

import resource

from mandate.identity.v1 import keys_pb2
from mesh import audit, client, db, ports, server
from mesh.settings import Runtime, load
from mesh.tls import Certificates
from mesh.verification import IdentityKeys
from vault_svc import root, service
from vault_svc.settings import VaultSettings
from vault_svc.tenants import TenantKeys


async def main() -> None:
    """Serve until a signal."""
    runtime, settings = load(Runtime), load(VaultSettings)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold open keys
    server.prepare("vault", runtime)
    root_keys = root.read(settings.keyring(runtime))
    identity = client.connect(
        "identity",
        ports.address_of("identity", runtime),
        Certificates(runtime.tls, "vault"),
        keys_pb2.DESCRIPTOR.services_by_name.values(),
    )
    ledger = client.connect(
        "ledger", ports.address_of("ledger", runtime), Certificates(runtime.tls, "vault"), (audit.SERVICE,)
    )
    async with (
        db.connect(settings.database_url, service="vault") as database,
        client.connected(identity),
        client.connected(ledger),
    ):
        keys = TenantKeys(database, root_keys)
        await keys.try_all_roots()
        verification = IdentityKeys(identity)
        registrations = service.registrations(database, keys, lease_ms=settings.lease_ms)
        serving = server.Server("vault", runtime, registrations, verification, service.resolver(database))
        workers = (audit.delivery(database, "vault", ledger),)
        await server.serve(serving, workers, before_stop=[verification.close])


if __name__ == "__main__":
    server.run(main())
