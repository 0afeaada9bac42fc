"""The vault as its own process, as `mandate up` starts it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.home import Home
from mesh.testing import House
from vault_svc import root

ROOT = hashlib.sha256(b"root key of the vault's tests").digest()


def keyring(path: Path) -> Path:
    key = base64.b64encode(ROOT).decode()
    path.write_text(json.dumps({"keys": [{"id": "k1", "key": key, "state": "primary"}]}))
    return path


def environment(house: House, keyring_file: Path) -> dict[str, str]:
    runtime = house.runtime
    return {
        "MANDATE_HOME": str(runtime.home),
        "MANDATE_BASE_PORT": str(runtime.base_port),
        "MANDATE_ENV_FILE": "",
        "MANDATE_DRAIN_SECONDS": "1",
        "MANDATE_IDENTITY_ADDRESS": "127.0.0.1:9",
        "MANDATE_VAULT_DATABASE_URL": house.dsn("vault").reveal(),
        "MANDATE_VAULT_KEYRING_FILE": str(keyring_file),
    }


async def is_healthy(environ: dict[str, str]) -> bool:
    check = await asyncio.create_subprocess_exec(sys.executable, "-m", "mesh.healthcheck", "vault", env=environ)
    return await check.wait() == 0


@asynccontextmanager
async def vault(environ: dict[str, str]) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vault_svc", env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_vault_starts_without_identity_becomes_ready_and_stops_when_told(
    house: House, tmp_path: Path
) -> None:
    environ = environment(house, keyring(tmp_path / "keyring.json"))
    assert not await is_healthy(environ)
    async with vault(environ) as process:
        async with asyncio.timeout(30):
            while not await is_healthy(environ):
                assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in errors


async def test_a_vault_without_its_keyring_ends_and_says_which_setting_is_wrong(house: House, tmp_path: Path) -> None:
    async with vault(environment(house, tmp_path / "none.json")) as process:
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
        assert process.returncode != 0
        assert b"MANDATE_VAULT_KEYRING_FILE" in errors


def test_the_keyring_of_a_new_home_can_be_used_and_stays(tmp_path: Path) -> None:
    path = Home.open(tmp_path / "home").ensure_keyring("vault")
    before = path.read_bytes()
    assert root.read(path)
    assert path.name == "vault.json"
    assert Home.open(tmp_path / "home").ensure_keyring("vault").read_bytes() == before
