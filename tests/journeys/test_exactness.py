from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.timeout(180)]

FLAT_MICROS = 1_000_000
PROMPT_MICROS, COMPLETION_MICROS = 100, 200  # of mock-model, a token


def client(mesh: Mesh, tenant: Tenant) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{mesh.gateway_url}/v1", api_key=tenant.api_key, max_retries=0, timeout=60)


def entries(mesh: Mesh, tenant: Tenant) -> list[dict[str, Any]]:
    """Read every entry of an organization, page by page."""
    query = """query Q($id: ID!, $after: String) { organization(id: $id) { entries(first: 100, after: $after) {
        nodes { account amountMicros kind requestId } pageInfo { endCursor hasNextPage } } } }"""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        variables = {"id": tenant.organization_id, "after": after}
        page = mesh.graphql(query, variables, tenant.token)["organization"]["entries"]
        found += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


def billed(path: Path, request_ids: set[str]) -> Counter[str]:
    """Count the model's own calls of these requests."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Counter(line["request_id"] for line in lines if line["request_id"] in request_ids)


async def test_of_400_callers_exactly_the_137_that_can_pay_are_served(mesh: Mesh) -> None:
    tenant = await asyncio.to_thread(mesh.tenant, 137 * FLAT_MICROS)
    instances: Counter[str] = Counter()
    served: list[str] = []
    refused: Counter[tuple[int, str]] = Counter()

    async def call(openai_client: openai.AsyncOpenAI) -> None:
        try:
            answer = await openai_client.chat.completions.with_raw_response.create(
                model="mock-flat",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=16,
                extra_headers={"x-mandate-clamp": "off"},
            )
        except openai.APIStatusError as error:
            refused[error.status_code, str(error.code)] += 1
            instances[error.response.headers["x-mandate-instance"]] += 1
            return
        served.append(answer.headers["x-request-id"])
        instances[answer.headers["x-mandate-instance"]] += 1

    async with client(mesh, tenant) as openai_client:
        await asyncio.gather(*(call(openai_client) for _ in range(400)))

    assert len(served) == 137, refused
    assert set(refused) <= {(402, "insufficient_quota"), (429, "budget_in_flight")}
    assert sum(refused.values()) == 400 - 137
    assert min(instances[f"gateway-{replica}"] for replica in (0, 1)) >= 40, instances  # both took their share
    assert mesh.wallet(tenant) == {"settledMicros": 0, "heldMicros": 0, "availableMicros": 0}
    found = entries(mesh, tenant)
    assert sum(int(entry["amountMicros"]) for entry in found) == 0
    charges = [entry for entry in found if entry["kind"] == "charge" and entry["account"] == "wallet"]
    assert sorted(entry["requestId"] for entry in charges) == sorted(served)
    assert {int(entry["amountMicros"]) for entry in charges} == {-FLAT_MICROS}
    bill = billed(Path(mesh.extra["MANDATE_MOCK_BILL_FILE"]), set(served))
    assert set(bill.values()) == {1}
    assert len(bill) == 137


async def test_callers_that_retry_until_402_leave_less_than_one_minimal_call(mesh: Mesh) -> None:
    tenant = await asyncio.to_thread(mesh.tenant, 1_234_567)
    text = "x" * 40
    charged: list[int] = []

    async def spend(openai_client: openai.AsyncOpenAI) -> None:
        while True:
            try:
                answer = await openai_client.chat.completions.create(
                    model="mock-model", messages=[{"role": "user", "content": text}], max_tokens=200
                )
            except openai.RateLimitError as error:
                assert error.code == "budget_in_flight"  # noqa: PT017  # any other 429 fails the test
                await asyncio.sleep(0.02)
                continue
            except openai.APIStatusError as error:
                assert (error.status_code, error.code) == (402, "insufficient_quota")  # noqa: PT017
                return
            charged.append(answer.model_dump()["x_platform"]["micro_credits_charged"])

    async with client(mesh, tenant) as openai_client:
        await asyncio.gather(*(spend(openai_client) for _ in range(16)))

    minimal = 10 * PROMPT_MICROS + 16 * COMPLETION_MICROS
    wallet = mesh.wallet(tenant)
    assert wallet["heldMicros"] == 0
    assert wallet["settledMicros"] == 1_234_567 - sum(charged)
    assert 0 <= wallet["settledMicros"] < minimal
