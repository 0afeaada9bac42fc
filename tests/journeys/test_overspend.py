"""A thousand callers at once, two gateways, limits on four levels and a wallet: not a micro-credit over any of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.journeys.completion_load import pages
from tests.journeys.families import Agent, Family, family
from tests.journeys.running import Mesh

CALLERS = 1_000
CREDIT = 1_000_000
FLAT_MICROS = CREDIT
PROMPT = "x" * 40
MODEL_MICROS = 10 * 100 + 16 * 200  # mock-model: 10 tokens in, 16 out
SEED = 20_261_121
SETTLE_SECONDS_MAX = 20
OUT_OF_MONEY = {"402 insufficient_quota", "429 budget_in_flight"}

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]


def body_of(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 16, "stream": stream}


def sent_by(agent: Agent, **more: str) -> dict[str, str]:
    headers = {name.replace("_", "-"): text for name, text in more.items()}
    return {"authorization": f"Bearer {agent.key}", "x-mandate-clamp": "off", **headers}


async def told(session: aiohttp.ClientSession, url: str, agent: Agent, model: str) -> str:
    """Ask once and return the status, and the code of an error."""
    async with session.post(url, json=body_of(model), headers=sent_by(agent)) as response:
        document = await response.json()
        return f"{response.status} {document['error']['code']}" if response.status != 200 else "200"


async def leaves(session: aiohttp.ClientSession, url: str, agent: Agent, chance: random.Random) -> None:
    """Ask for a stream of 80 ms and go away before its head or in its midst, or stay to its end."""
    seconds = chance.choice((0.0, chance.uniform(0, 0.2), chance.uniform(0.2, 3), 30.0))
    headers = sent_by(agent, x_mock="latency_ms=20;event_ms=5")
    try:
        async with (
            asyncio.timeout(seconds),
            session.post(url, json=body_of("mock-model", stream=True), headers=headers) as response,
        ):
            await response.read()
    except (TimeoutError, aiohttp.ClientError):
        return


async def rest(made: Family) -> None:
    """Wait until nothing is held any more."""
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while (await asyncio.to_thread(made.mesh.wallet, made.tenant))["heldMicros"]:  # noqa: ASYNC110  # a database is asked
            await asyncio.sleep(0.1)


def check(made: Family, limits: dict[str, int], bought_micros: int, price_micros: int) -> int:
    """Check every limit, the wallet and the model's bill; return what was charged."""
    rows = pages(made.mesh, made.tenant, "usage", "requestId agentId chargedMicros")
    spent: Counter[str] = Counter()
    paths = {agent.id: agent.path for agent in made.agents}
    for row in rows:
        spent.update(dict.fromkeys(paths[row["agentId"]], int(row["chargedMicros"])))
    assert not {target: spent[target] for target, limit in limits.items() if spent[target] > limit}
    charged = spent[made.tenant.organization_id]
    wallet = made.mesh.wallet(made.tenant)
    assert (wallet["settledMicros"], wallet["heldMicros"]) == (bought_micros - charged, 0)
    assert sum(int(entry["amountMicros"]) for entry in pages(made.mesh, made.tenant, "entries", "amountMicros")) == 0
    lines = [json.loads(line) for line in Path(made.mesh.extra["MANDATE_MOCK_BILL_FILE"]).read_text().splitlines()]
    mine = {row["requestId"] for row in rows}
    billed = Counter(line["request_id"] for line in lines if line["request_id"] in mine)
    assert set(billed) == mine
    assert set(billed.values()) <= {1}
    assert {int(row["chargedMicros"]) for row in rows} <= {price_micros}
    return charged


@pytest.mark.parametrize(
    ("model", "price_micros", "bought_prices"),
    [("mock-flat", FLAT_MICROS, 1_000), ("mock-flat", FLAT_MICROS, 170), ("mock-model", MODEL_MICROS, 1_000)],
)
async def test_of_a_thousand_callers_exactly_as_many_are_served_as_every_limit_allows(
    mesh: Mesh, model: str, price_micros: int, bought_prices: int
) -> None:
    bought_micros = bought_prices * price_micros + 1
    made = await asyncio.to_thread(family, mesh, bought_micros)
    crumb = price_micros - 1  # each limit leaves what nothing can be bought for
    amounts = [prices * price_micros + crumb for prices in (200, 150, 100, 40)]
    limits = await asyncio.to_thread(made.limited, *amounts)
    url = f"{mesh.gateway_url}/v1/chat/completions"
    heard: Counter[str] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        calls = [told(session, url, made.agents[number % 4], model) for number in range(CALLERS)]
        heard.update(await asyncio.gather(*calls))

    assert set(heard) <= {"200"} | OUT_OF_MONEY
    assert heard["200"] == min(bought_prices, 200)  # limits that lie one in another leave the outermost exhausted
    assert check(made, limits, bought_micros, price_micros) == heard["200"] * price_micros


async def test_clients_that_leave_at_any_moment_overspend_nothing_and_lose_nothing(mesh: Mesh) -> None:
    bought_micros = 10**9
    made = await asyncio.to_thread(family, mesh, bought_micros)
    amounts = [prices * MODEL_MICROS for prices in (400, 300, 200, 80)]
    limits = await asyncio.to_thread(made.limited, *amounts)
    url = f"{mesh.gateway_url}/v1/chat/completions"
    chance = random.Random(SEED)  # noqa: S311  # no secret: a run that failed is run again
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(leaves(session, url, made.agents[number % 4], chance) for number in range(CALLERS)))
        await rest(made)
        check(made, limits, bought_micros, MODEL_MICROS)
        # Whatever headroom was given back by those who left is there for others, to the last request that fits.
        for agent in made.agents:
            while (heard := await told(session, url, agent, "mock-model")) == "200":
                pass
            assert heard == "402 insufficient_quota"
    assert check(made, limits, bought_micros, MODEL_MICROS) == 400 * MODEL_MICROS
