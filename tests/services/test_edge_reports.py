from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from ledger_svc.store import rollups
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services import usage_recount as recount
from tests.services.edge_running import Agent, Asker, RunningEdge, backed, edge_running
from tests.services.identity_running import fresh
from tests.services.ledger_running import owner

START, END = recount.day("2026-03-27T23:00"), recount.day("2026-03-30T22:00")  # three days in Berlin, one of 23 hours
PERIOD = {"f": START.isoformat(), "t": END.isoformat()}


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


async def used(ada: Asker, ledger: RunningLedger) -> tuple[Agent, list[recount.Used]]:
    """Return an agent of an organization that keeps Berlin's time, and its usage, half of it rolled up."""
    agent = await ada.agent(await ada.organization())
    values = {"organizationId": agent.organization_id, "timeZone": "Europe/Berlin", "idempotencyKey": fresh()}
    await ada.made("updateLedgerRules", "rules { version }", **values)
    rng = recount.seeded(1)
    path = (agent.organization_id, agent.workspace_id, agent.group_id, agent.id)
    rows = recount.made_up(rng, [path], recount.moments(rng, START, END, 40))
    async with owner(ledger.house) as connection:
        await recount.write(connection, rows)
    await rollups.roll_up(ledger.database, agent.organization_id, 20)
    return agent, rows


async def ask(ada: Asker, agent: Agent, fields: str, **variables: Any) -> dict[str, Any]:
    """Ask for reports on the organization."""
    query = f"query($id: ID!, $f: DateTime!, $t: DateTime!) {{ organization(id: $id) {{ reports {{ {fields} }} }} }}"
    data = await ada.ask(query, id=agent.organization_id, **(PERIOD | variables))
    return data["organization"]["reports"]


async def test_a_summary_is_of_the_organization_of_a_node_or_of_an_agent(ada: Asker, ledger: RunningLedger) -> None:
    agent, rows = await used(ada, ledger)
    summary = "summary(fromTime: $f, toTime: $t) { requests chargedMicros totalTokens timeZone failures { errorPpm } }"
    query = f"""query($id: ID!, $group: ID!, $agent: ID!, $f: DateTime!, $t: DateTime!) {{
        organization(id: $id) {{ all: reports {{ {summary} }} group: reports(below: $group) {{ {summary} }} }}
        agent(id: $agent) {{ reports {{ {summary} }} }} }}"""
    data = await ada.ask(query, id=agent.organization_id, group=agent.group_id, agent=agent.id, **PERIOD)
    failed = sum(row.outcome in {"upstream_error", "upstream_cut"} for row in rows)
    expected = {
        "requests": "40",
        "chargedMicros": str(sum(row.charged_micros for row in rows)),
        "totalTokens": str(sum(row.tokens for row in rows)),
        "timeZone": "Europe/Berlin",
        "failures": {"errorPpm": failed * 1_000_000 // 40},
    }
    assert data["organization"] == {"all": {"summary": expected}, "group": {"summary": expected}}
    assert data["agent"] == {"reports": {"summary": expected}}


async def test_trends_are_by_days_of_the_organization(ada: Asker, ledger: RunningLedger) -> None:
    agent, rows = await used(ada, ledger)
    times = "interval: DAY, fromTime: $f, toTime: $t"
    fields = f"""tokenTrend({times}) {{ startTime requests inputTokens }}
        serviceTrend({times}) {{ startTime requests failures {{ status5xxRequests }} latencies {{ p95Ms }} }}"""
    found = await ask(ada, agent, fields)
    begun = ["2026-03-27T23:00:00+00:00", "2026-03-28T23:00:00+00:00", "2026-03-29T22:00:00+00:00"]
    assert [step["startTime"] for step in found["tokenTrend"]] == begun
    assert [step["startTime"] for step in found["serviceTrend"]] == begun
    assert sum(int(step["inputTokens"]) for step in found["tokenTrend"]) == sum(row.input_tokens for row in rows)
    assert sum(int(step["failures"]["status5xxRequests"]) for step in found["serviceTrend"]) == sum(
        row.http_status == 502 for row in rows
    )


async def test_who_used_most_and_when_is_told(ada: Asker, ledger: RunningLedger) -> None:
    agent, rows = await used(ada, ledger)
    fields = """top(kind: API_KEY, measure: REQUESTS, first: 1, fromTime: $f, toTime: $t) { name requests }
        activity(fromTime: $f, toTime: $t) { weekday hour requests } burnRate { lastDay { hourlyMicros runOutTime } }"""
    found = await ask(ada, agent, fields)
    counts = recount.ranking(rows, lambda row: [row.api_key_id])
    name, sums = min(counts.items(), key=lambda item: (-item[1][0], item[0]))
    assert found["top"] == [{"name": name, "requests": str(sums[0])}]
    cells = {(cell["weekday"], cell["hour"]): int(cell["requests"]) for cell in found["activity"]}
    assert len(cells) == 168
    local = recount.activity(rows, "Europe/Berlin")
    assert {cell: count for cell, count in cells.items() if count} == {cell: sums[0] for cell, sums in local.items()}
    assert found["burnRate"] == {"lastDay": {"hourlyMicros": "0", "runOutTime": None}}


@pytest.mark.parametrize(
    ("fields", "variables", "field"),
    [
        ("summary(fromTime: $f, toTime: $t) { requests }", {"f": END.isoformat()}, "toTime"),
        ("summary(fromTime: $f, toTime: $t) { requests }", {"f": "0001-01-01T00:00:00+14:00"}, "fromTime"),
        ("activity(fromTime: $f, toTime: $t) { hour }", {"f": (START + timedelta(minutes=1)).isoformat()}, "fromTime"),
        ("top(kind: MODEL, first: 101, fromTime: $f, toTime: $t) { name }", {}, "first"),
        ("tokenTrend(interval: HOUR, first: 0, fromTime: $f, toTime: $t) { requests }", {}, "first"),
        ("tokenTrend(interval: HOUR, first: 70, fromTime: $f, toTime: $t) { requests }", {}, "first"),
        ("serviceTrend(interval: HOUR, first: 70, fromTime: $f, toTime: $t) { requests }", {}, "first"),
    ],
)
async def test_a_bad_argument_of_a_report_is_named(
    ada: Asker, fields: str, variables: dict[str, str], field: str
) -> None:
    query = f"query($id: ID!, $f: DateTime!, $t: DateTime!) {{ organization(id: $id) {{ reports {{ {fields} }} }} }}"
    answer = await ada.answer(query, id=await ada.organization(), **(PERIOD | variables))
    assert [error["extensions"]["field"] for error in answer["errors"]] == [field]


async def test_rules_are_read_and_changed(ada: Asker) -> None:
    organization = await ada.organization()
    query = "query($id: ID!) { organization(id: $id) { rules { version timeZone uncertainHolds defaultPrice } } }"
    first = {"version": 0, "timeZone": "UTC", "uncertainHolds": "LIST", "defaultPrice": ""}
    assert (await ada.ask(query, id=organization))["organization"]["rules"] == first
    values = {"organizationId": organization, "uncertainHolds": "RELEASE", "defaultPrice": "mock/mock-model"}
    made = await ada.made("updateLedgerRules", "rules { version uncertainHolds }", **values)
    assert made["rules"] == {"version": 1, "uncertainHolds": "RELEASE"}
    payload = await ada.payload("updateLedgerRules", "rules { version }", organizationId=organization, timeZone="X")
    assert [(error["code"], error["field"]) for error in payload["userErrors"]] == [("INVALID_FIELD", "timeZone")]
