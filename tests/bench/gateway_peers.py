"""The gateways that ours is compared with, one process each, all asking the same provider.

LiteLLM and Portkey are fetched once, at the versions named here, into a folder beside the virtual environment's own
packages. LiteLLM runs in its easiest case: no database, one master key. Portkey has no keys of its own at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mesh import children
from tests.bench.gateway_answers import question, request
from tests.bench.gateway_load import STREAM, WHOLE, Target
from tests.bench.gateway_processes import MEASURED_CORE, OTHERS_CORE, process

FOLDER = Path(__file__).parents[2] / ".venv" / "bench-peers"
PATH = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
DIRECT, BARE, LITELLM, PORTKEY = "direct", "pass-through", "LiteLLM", "Portkey"
KEY = "sk-0123456789abcdef0123456789abcdef"
LITELLM_PACKAGES = ("litellm[proxy]==1.106.2",)
PORTKEY_PACKAGE = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    # With what npm picks by itself (1.19.19 of the second) every stream is answered with 500.
    "overrides": {"hono": "4.9.7", "@hono/node-server": "1.13.8"},
}
MARK = "installed.json"  # written last
INSTALL_SECONDS = 600
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
ENVIRONMENT = {name: os.environ[name] for name in KEPT if name in os.environ}  # noqa: TID251  # peers are other people's programs


class Provider:
    """The provider of all, and where its interface lies."""

    def __init__(self, port: int, pid: int) -> None:
        self.target = target(DIRECT, port, {"provider": pid})
        self.url = f"http://127.0.0.1:{port}/v1"


def target(
    name: str, port: int, processes: dict[str, int], headers: Sequence[tuple[str, str]] = (), model: str = MODEL
) -> Target:
    """Describe something that is asked with one key."""
    sent = [("authorization", f"Bearer {KEY}"), *headers]
    requests = {
        kind: (request(PATH, port, sent, question(model, streamed=kind == STREAM)),) for kind in (WHOLE, STREAM)
    }
    return Target(name, port, requests, processes)


@asynccontextmanager
async def provider(logs: Path) -> AsyncGenerator[Provider]:
    """Run the provider."""
    port = children.free_port()
    argv = (sys.executable, "-m", "tests.bench.upstream_mock", str(port))
    async with process(argv, port, OTHERS_CORE, logs / "provider.log", python_environment()) as pid:
        yield Provider(port, pid)


@asynccontextmanager
async def bare(asked: Provider, logs: Path) -> AsyncGenerator[Target]:
    """Run aiohttp's server and client with nothing between them."""
    port = children.free_port()
    argv = (sys.executable, "-m", "tests.bench.passthrough", str(port), f"{asked.url}/chat/completions")
    async with process(argv, port, MEASURED_CORE, logs / "passthrough.log", python_environment()) as pid:
        yield target(BARE, port, {"gateway": pid})


@asynccontextmanager
async def litellm(asked: Provider, logs: Path) -> AsyncGenerator[Target]:
    """Run LiteLLM's proxy."""
    folder, port = FOLDER / "litellm", children.free_port()
    await _litellm_installed(folder)
    routed = {"model": f"openai/{MODEL}", "api_base": asked.url, "api_key": KEY}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": routed}],
        "general_settings": {"master_key": KEY},
    }
    configuration = _written(logs / "litellm.json", settings)  # JSON is YAML
    argv = (str(folder / "bin" / "litellm"), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port))
    environment = ENVIRONMENT | {
        "PATH": f"{folder / 'bin'}:{ENVIRONMENT['PATH']}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_TELEMETRY": "False",
    }
    async with process((*argv, "--num_workers", "1"), port, MEASURED_CORE, logs / "litellm.log", environment) as pid:
        yield target(LITELLM, port, {"gateway": pid})


@asynccontextmanager
async def portkey(asked: Provider, logs: Path) -> AsyncGenerator[Target | None]:
    """Run Portkey's gateway; None where there is no node to run it."""
    folder, port = FOLDER / "portkey", children.free_port()
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        yield None
        return
    await _portkey_installed(folder, npm)
    server = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    argv = (node, str(server), f"--port={port}", "--headless")
    environment = ENVIRONMENT | {"NODE_ENV": "production"}
    headers = [("x-portkey-provider", "openai"), ("x-portkey-custom-host", asked.url)]
    async with process(argv, port, MEASURED_CORE, logs / "portkey.log", environment, folder) as pid:
        yield target(PORTKEY, port, {"gateway": pid}, headers)


async def _litellm_installed(folder: Path) -> None:
    if not _outdated(folder, LITELLM_PACKAGES):
        return
    await _run(sys.executable, "-m", "venv", str(folder))
    await _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *LITELLM_PACKAGES)
    _written(folder / MARK, LITELLM_PACKAGES)


async def _portkey_installed(folder: Path, npm: str) -> None:
    if not _outdated(folder, PORTKEY_PACKAGE):
        return
    _written(folder / "package.json", PORTKEY_PACKAGE)
    await _run(npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", cwd=folder)
    _written(folder / MARK, PORTKEY_PACKAGE)


def _written(file: Path, document: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def _outdated(folder: Path, wanted: object) -> bool:
    """Say whether something else than what is wanted is there, or only a part of it; remove that."""
    mark = folder / MARK
    if mark.exists() and mark.read_text() == json.dumps(wanted):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {folder.name}", flush=True)
    return True


async def _run(*argv: str, cwd: Path | None = None) -> None:
    child = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await asyncio.wait_for(child.communicate(), INSTALL_SECONDS)
    assert child.returncode == 0, printed.decode()[-2000:]


def python_environment() -> dict[str, str]:
    """Return what a program of this repository is run with."""
    return ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
