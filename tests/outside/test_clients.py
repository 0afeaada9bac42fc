"""Clients that agents are built on, fetched from their registries and unchanged, against a running gateway."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.secret import Secret
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.gateway_running import Tenant, gateway_running, mesh_running, upstream_running

pytestmark = pytest.mark.timeout(400)
CLIENTS = Path(__file__).parent / "clients"
PYTHON_PACKAGES = ("anthropic==2.12.0", "langchain-openai==1.7.3")
NODE_PACKAGES = ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "@ai-sdk/anthropic@4.0.105")
VENDORS = ("gpt-6.2-sol", "claude-sonnet-5-5")
MODELS = ("mock-model", *VENDORS)
WORDS = [f"word{number}" for number in range(8)]


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway and somebody with money."""

    url: str
    tenant: Tenant


async def run(*command: str | Path, folder: Path) -> bytes:
    """Run a program to its end; one that fails fails the test with what it said."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), cwd=folder, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, err.decode()[-3_000:]
    return out


@pytest.fixture(scope="module")
async def place(house: House, ledger: RunningLedger, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("gateway")
    async with upstream_running(folder) as upstream, mesh_running(house, ledger) as mesh:
        settings: dict[str, Any] = {
            "openai_api_key": Secret("sk-platform-0123456789"),
            "openai_base_url": upstream.url,
            "anthropic_api_key": Secret("sk-ant-0123456789"),
            "anthropic_base_url": upstream.url,
        }
        async with gateway_running(mesh, folder, **settings) as gateway:
            yield Place(gateway.url, await mesh.tenant(10**12))


@pytest.fixture(scope="module")
async def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    await run(sys.executable, "-m", "venv", "clients", folder=folder)
    found = folder / "clients" / "bin" / "python"
    await run(found, "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES, folder=folder)
    return found


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node")
    await run("npm", "install", "--silent", "--no-audit", "--no-fund", *NODE_PACKAGES, folder=folder)
    script = folder / "with_vercel.mjs"
    script.write_text((CLIENTS / "with_vercel.mjs").read_text())
    return script


def words(text: str, model: str) -> bool:
    return text.split() == (["tok"] * 16 if model == "mock-model" else WORDS)


@pytest.mark.parametrize("model", VENDORS)
async def test_anthropics_client_works_unchanged(place: Place, python: Path, model: str) -> None:
    script = CLIENTS / "with_anthropic.py"
    told = json.loads(await run(python, script, place.url, place.tenant.key, model, folder=CLIENTS))
    assert [told[name].split() for name in ("text", "older", "streamed")] == [WORDS] * 3
    assert (told["stop"], told["output_tokens"], told["streamed_tokens"]) == ("end_turn", 8, 8)
    assert told["request_id"].startswith("req_")
    assert told["tool"][:2] == ["tool_use", "weather"]
    assert told["tool_streamed"] == [told["tool"]]
    assert told["counted"] >= 3
    assert set(MODELS) <= set(told["models"])
    assert told["model"] == "model"
    for name, kind, status, word in (
        ("bad_key", "AuthenticationError", 401, "authentication_error"),
        ("no_model", "NotFoundError", 404, "not_found_error"),
    ):
        assert (told[name]["class"], told[name]["status"], told[name]["type"]) == (kind, status, word)
        assert told[name]["id"].startswith("req_")


@pytest.mark.parametrize("model", VENDORS)
async def test_langchain_works_unchanged(place: Place, python: Path, model: str) -> None:
    script = CLIENTS / "with_langchain.py"
    told = json.loads(await run(python, script, place.url, place.tenant.key, model, folder=CLIENTS))
    assert [told[name].split() for name in ("text", "streamed", "unasked")] == [WORDS] * 3
    assert [told[name]["output_tokens"] for name in ("usage", "streamed_usage")] == [8, 8]
    assert told["tools"] == ["weather"]


@pytest.mark.parametrize("model", VENDORS)
async def test_vercels_sdk_works_unchanged(place: Place, node: Path, model: str) -> None:
    told = json.loads(await run("node", node, place.url, place.tenant.key, model, folder=node.parent))
    assert set(told) == {"openai", "anthropic"}
    for wire in told.values():
        assert (wire["text"].split(), wire["streamed"].split()) == (WORDS, WORDS)
        assert (wire["usage"]["outputTokens"], wire["streamedUsage"]["outputTokens"]) == (8, 8)
        assert wire["tools"] == ["weather"]
        assert wire["refused"] == [404, "there is no model 'no-such-model'"]
