"""`mandate demo`: have a mesh running, do the main story once, and say what happened. The story is in `story.py`."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from mesh import background, console, status, story
from mesh.home import Home
from mesh.settings import Runtime, load
from mesh.story import StoryError, Urls, quick_key
from mesh.supervisor import StartError

if TYPE_CHECKING:
    from mesh.status import MeshStatus
    from mesh.story import Say, Tenant

__all__ = ["main", "quick_key"]

DONE, FAILED = 0, 1
READY_SECONDS = 120.0
POLL_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """Run the command; 0 when the story went as told, 1 when not."""
    from openai import APIError  # noqa: PLC0415  # a second of imports that other commands need not wait for

    parser = argparse.ArgumentParser(prog="mandate demo", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON object; a running mesh is left running")
    options = parser.parse_args(arguments)
    terminal = console.terminal()

    def say(line: str) -> None:
        if not options.json:
            terminal("", line)

    with _mesh(Home.open(load(Runtime).home), say) as mesh:
        urls = Urls(mesh.gateway_url, mesh.graphql_url, mesh.portal_url)
        try:
            tenant = asyncio.run(story.tell(urls, say))
        except (StoryError, httpx.HTTPError, APIError) as error:
            console.complain(f"mandate: {error or type(error).__name__}")
            return FAILED
        if options.json:
            terminal("", json.dumps(_facts(urls, tenant), indent=2))
    return DONE


@contextmanager
def _mesh(home: Home, say: Say) -> Generator[MeshStatus]:
    """Lend the mesh that runs, or one that is started for the block and stopped after it."""
    if home.holder() is not None:
        yield _ready(home)
        return
    say("starting the mesh")
    try:
        yield background.detach(home, ["up", "--into-log"])
    finally:
        if background.stop(home):
            say("stopped the mesh")


def _ready(home: Home) -> MeshStatus:
    deadline = time.monotonic() + READY_SECONDS
    while home.holder() is not None and time.monotonic() < deadline:
        found = status.recorded(home)
        if found is not None and found.state in {"ready", "degraded"}:
            return found
        time.sleep(POLL_SECONDS)
    raise StartError("the mesh that runs did not become ready; see `mandate status`")


def _facts(urls: Urls, tenant: Tenant) -> dict[str, str | None]:
    return {
        "gateway_url": urls.gateway,
        "graphql_url": urls.graphql,
        "portal_url": urls.portal,
        "email": tenant.email,
        "password": tenant.password,
        "org_id": tenant.organization_id,
        "workspace_id": tenant.workspace_id,
        "agent_group_id": tenant.agent_group_id,
        "agent_id": tenant.agent_id,
        "api_key": tenant.api_key,
        "client_id": None,
        "client_secret": None,
    }
