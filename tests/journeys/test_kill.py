"""Kill each part of a mesh under load; afterwards the model's own bill and the ledger must tell one story."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.completion_load import Load, check, recovered, story_of, upstream
from tests.journeys.running import Mesh

pytestmark = [pytest.mark.journey, pytest.mark.chaos, pytest.mark.timeout(280)]

BOUGHT_MICROS = 10**12
RECOVERY_SECONDS = 10.0
TARGETS = ("gateway", "ledger", "postgres", "identity", "vault", "valkey", "edge")


async def test_every_part_may_be_killed_under_load(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    bill = tmp_path / "bill.jsonl"
    in_flight: dict[str, int] = {}
    took: dict[str, float] = {}
    with upstream(bill) as url:
        mesh = Mesh(tmp_path / "home", extra={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-upstream-0123456789"})
        with mesh.up():
            tenant = await asyncio.to_thread(mesh.tenant, BOUGHT_MICROS)
            load = Load(mesh.gateway_url, tenant.api_key)
            async with load.running():
                for target in TARGETS:
                    await asyncio.sleep(1.0)
                    in_flight[target] = load.in_flight
                    killed_at = time.monotonic()
                    await asyncio.to_thread(mesh.kill, target)
                    took[target] = await recovered(mesh, load, killed_at, 3 * RECOVERY_SECONDS)
            story = await story_of(mesh, tenant)

    record_property("recovery_seconds", took)
    record_property("counts", (len(story.settled), len(story.uncertain), in_flight, dict(load.failures)))
    assert max(took.values()) <= RECOVERY_SECONDS, took
    check(story, load, bill, BOUGHT_MICROS)
    assert len(story.uncertain) <= sum(in_flight.values())
