from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mesh import db, key_file
from mesh.secret import Secret
from mesh.services import SERVICES
from mesh.testing import House
from mesh.tls import Certificates
from vault_svc import root

OWN = {
    "identity": {"sealing.key", "database_url"},
    "vault": {"vault.json", "database_url"},
    "ledger": {"audit.json", "database_url"},
    "gateway": {"sealing.key", "database_url"},
    "edge": set[str](),
}


def init(house: House, into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # The house's own home: another one's passwords would lock the house out of its database.
    environment = {"MANDATE_HOME": str(house.home.path), "MANDATE_ENV_FILE": ""} | environment
    command = [sys.executable, "-m", "mesh", "init", "--into", str(into)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def into(house: House, tmp_path: Path) -> Path:
    done = init(house, tmp_path / "run", MANDATE_DATABASE_URL=house.owner_dsn.reveal())
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_each_service_is_handed_what_is_its_own_and_no_more(into: Path) -> None:
    handed = {folder.name: {path.name for path in folder.iterdir()} for folder in into.iterdir()}
    assert handed == {
        service.name: {"ca.pem", f"{service.name}.pem", f"{service.name}.key"} | OWN.get(service.name, {"database_url"})
        for service in SERVICES
    }
    assert {path.stat().st_mode & 0o077 for path in into.rglob("*")} == {0}


async def test_what_was_handed_out_works(into: Path) -> None:
    for service in SERVICES:
        Certificates(into / service.name, service.name).client()
    for service in ("identity", "gateway"):
        assert key_file.read(into / service / "sealing.key", setting="")
    assert root.read(into / "vault" / "vault.json")
    dsn = Secret((into / "vault" / "database_url").read_text())
    async with db.connect(dsn, service="vault") as database:
        assert await database.value("SELECT current_user") == "mandate_vault"


def test_handing_out_again_changes_nothing(house: House, into: Path) -> None:
    before = {path: path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert init(house, into, MANDATE_DATABASE_URL=house.owner_dsn.reveal()).returncode == 0
    assert {path: path.read_bytes() for path in before} == before


def test_without_a_database_to_share_nothing_is_handed_out(house: House, tmp_path: Path) -> None:
    done = init(house, tmp_path / "run")
    assert (done.returncode, (tmp_path / "run").exists()) == (1, False)
    assert "MANDATE_DATABASE_URL" in done.stderr
