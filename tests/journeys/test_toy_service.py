"""CONTRIBUTING's "Add a service", followed on a copy of the tree: what it does not name must not be needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.journeys.running import Mesh

pytestmark = [pytest.mark.journey, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "protos/mandate/toy/v1/toys.proto": """
        syntax = "proto3";

        // Toys.
        package mandate.toy.v1;

        import "mandate/options/v1/access.proto";

        // ToyService counts.
        service ToyService {
          // GetToy returns how many rows there are.
          rpc GetToy(GetToyRequest) returns (Toy) {
            option idempotency_level = NO_SIDE_EFFECTS;
            option (mandate.options.v1.access) = {
              callers: "edge"
              permission: "service"
            };
          }
        }

        // Toy is a count.
        message Toy {
          int64 count = 1;
        }

        // GetToyRequest is empty.
        message GetToyRequest {}
        """,
    "toy_svc/__init__.py": '"""Toys."""\n',
    "toy_svc/settings.py": '''
        """What the toy reads."""

        from __future__ import annotations

        from dataclasses import dataclass

        from mesh.secret import Secret
        from mesh.settings import setting


        @dataclass(frozen=True, slots=True, kw_only=True)
        class Toy:
            """Its settings."""

            database_url: Secret = setting("MANDATE_TOY_DATABASE_URL", ..., "PostgreSQL as the toy's own role.")
        ''',
    "toy_svc/service.py": '''
        """Toys over gRPC."""

        from __future__ import annotations

        from mandate.toy.v1 import toys_pb2 as pb
        from mandate.toy.v1 import toys_pb2_grpc as rpc
        from mesh.chain import Context
        from mesh.db import Database
        from mesh.server import Registration


        class ToyServicer(rpc.ToyServiceServicer):
            """Implements mandate.toy.v1.ToyService."""

            def __init__(self, db: Database) -> None:
                self._db = db

            async def GetToy(self, request: pb.GetToyRequest, context: Context) -> pb.Toy:
                return pb.Toy(count=await self._db.value("SELECT count(*) FROM toys"))


        def registrations(db: Database) -> list[Registration]:
            """Return the toy's contract with what implements it."""
            return [Registration.of(pb, rpc, ToyServicer(db))]
        ''',
    "toy_svc/migrations/0001_toys.sql": """
        CREATE TABLE toys (id int PRIMARY KEY);
        INSERT INTO toys VALUES (1), (2);
        GRANT USAGE ON SCHEMA toy TO mandate_toy;
        GRANT SELECT ON toys TO mandate_toy;
        """,
    "toy_svc/__main__.py": '''
        """Start the toy."""

        from __future__ import annotations

        from mandate.identity.v1 import keys_pb2
        from mesh import client, db, ports, server, settings
        from mesh.chain.access import organizations_only
        from mesh.tls import Certificates
        from mesh.verification import IdentityKeys
        from toy_svc.service import registrations
        from toy_svc.settings import Toy


        async def main() -> None:
            """Run until told to stop."""
            runtime, own = settings.load(settings.Runtime), settings.load(Toy)
            server.prepare("toy", runtime)
            services = keys_pb2.DESCRIPTOR.services_by_name.values()
            address = ports.address_of("identity", runtime)
            channel = client.connect("identity", address, Certificates(runtime.tls, "toy"), services)
            async with db.connect(own.database_url, service="toy") as database, client.connected(channel):
                keys = IdentityKeys(channel)
                served = server.Server("toy", runtime, registrations(database), keys, organizations_only)
                await server.serve(served)


        if __name__ == "__main__":
            server.run(main())
        ''',
}
ROW = '    Service(name="toy", package="toy_svc", needs=("postgres", "identity"), grpc=35, metrics=75),\n'
CALL = """
import asyncio, sys
from pathlib import Path
from mandate.toy.v1 import toys_pb2 as pb, toys_pb2_grpc as rpc
from mesh import client
from mesh.tls import Certificates

async def main():
    channel = client.connect("toy", sys.argv[1], Certificates(Path(sys.argv[2]), "edge"), ())
    async with client.connected(channel):
        print((await client.call(rpc.ToyServiceStub(channel).GetToy, pb.GetToyRequest())).count)

asyncio.run(main())
"""


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what git would hand a stranger, local changes included."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def run_in(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = Mesh(tree / "home").environment | {"PYTHONPATH": f"{tree}:{tree}/protos"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # protoc looks for its plugins there
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_service_added_as_the_guide_says_starts_and_answers(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(textwrap.dedent(text).lstrip())
    table = tree / "mesh" / "services.py"
    table.write_text(table.read_text().replace("\n)\n\n\ndef named", f"\n{ROW})\n\n\ndef named"))
    made = run_in(tree, "protos/generate.py")
    assert made.returncode == 0, made.stderr

    mesh = Mesh(tmp_path / "home", extra={"PYTHONPATH": f"{tree}:{tree}/protos"}, folder=tree)
    with mesh.up("--only", "toy"):
        names = {process["name"] for process in mesh.status()["processes"]}
        address, tls = f"127.0.0.1:{mesh.base_port + 35}", str(mesh.home / "tls")
        answered = run_in(tree, "-c", CALL, address, tls)
    assert {"toy", "identity", "ledger", "postgres"} <= names
    assert answered.stdout.strip() == "2", answered.stderr


def test_a_servicer_that_lacks_a_method_of_its_contract_cannot_be_made(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(textwrap.dedent(text).lstrip().replace("async def GetToy", "async def GetOther"))
    made = run_in(tree, "protos/generate.py")
    assert made.returncode == 0, made.stderr
    (tree / "pyrightconfig.json").write_text(
        '{"include": ["toy_svc"], "extraPaths": ["protos"], "typeCheckingMode": "strict"}'
    )
    checked = run_in(tree, "-m", "basedpyright", "--pythonpath", sys.executable)
    assert checked.returncode != 0
    assert '"ToyServiceServicer.GetToy" is not implemented' in checked.stdout
