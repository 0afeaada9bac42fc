"""`mandate init`: bring the database to this version and hand each service a folder with what is its own and no more.

For meshes whose processes run apart (compose, Kubernetes); `mandate up` needs none of it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import certificates, console
from mesh.clock import SystemClock
from mesh.embedded.provision import addresses
from mesh.home import Home, write_private
from mesh.services import SERVICES
from mesh.settings import Deployment, Runtime, SettingsError, Source, load
from mesh.up import Plan, ensure_keys, prepare_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.services import Service

# What a service's key is called in the home, and in its own folder, where <service>.key is that of its certificate.
KEY_FILES = {
    "identity": ("identity.key", "sealing.key"),
    "vault": ("vault.json", "vault.json"),
    "ledger": ("audit.json",) * 2,
    "gateway": ("gateway.key", "sealing.key"),
}


def main(arguments: list[str]) -> int:
    """Run the command; doing it again renews certificates that end soon and changes nothing else."""
    parser = argparse.ArgumentParser(prog="mandate init", allow_abbrev=False)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the services' folders are")
    into: Path = parser.parse_args(arguments).into
    source = Source.process()
    deployment = load(Deployment, source)
    if deployment.database_url is None:
        raise SettingsError("MANDATE_DATABASE_URL", "must be set: services that run apart share one database")
    home = Home.open(load(Runtime, source).home)
    with home.lock():
        certificates.ensure(home, SystemClock())
        ensure_keys(home)
        plan = Plan(load(Runtime, source), deployment, source, home, {})
        asyncio.run(prepare_database(plan, console.terminal()))
        for service in SERVICES:
            hand_out(plan, service, into / service.name)
    return 0


def hand_out(plan: Plan, service: Service, folder: Path) -> None:
    """Write what one service needs into `folder`, which nobody else is to see."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in _belongings(plan, service):
        write_private(folder / name, content)


def _belongings(plan: Plan, service: Service) -> Iterator[tuple[str, bytes]]:
    for name in ("ca.pem", f"{service.name}.pem", f"{service.name}.key"):
        yield name, (plan.home.tls / name).read_bytes()
    if service.database:
        dsn = addresses(plan.owner_dsn, plan.passwords).services[service.name]
        yield "database_url", dsn.reveal().encode()
    if service.name in KEY_FILES:
        kept, handed = KEY_FILES[service.name]
        yield handed, (plan.home.keys / kept).read_bytes()
