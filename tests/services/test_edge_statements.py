from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from graphql_edge.guards import POINTS_MAX
from ledger_svc.store import registry, wallets
from mesh import ids
from mesh.ids import Kind
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running
from tests.services.identity_running import as_owner
from tests.services.ledger_running import TOKEN_MICROS, owner, tenant

CREDITS = 100 * TOKEN_MICROS
CHARGES = 5
CHECK = "booksCheck { discrepancies { what subject expected found } transferSeq usageSeq auditSeq }"
FAR, NOON = "0001-01-01T00:00:00+14:00", "2026-01-01T12:00:00Z"


@dataclass(frozen=True, slots=True)
class Books:
    """The books of an organization that bought credits (transfer 1) and spent a token in each of five charges."""

    ada: Asker
    id: str
    budget: str

    async def ask(self, fields: str) -> dict[str, Any]:
        """Read fields of the organization; an error fails the test."""
        return (await self.ada.ask(f"query($id: ID!) {{ organization(id: $id) {{ {fields} }} }}", id=self.id))[
            "organization"
        ]

    async def refusal(self, fields: str) -> dict[str, Any]:
        """Read a field that is refused and return what the error says."""
        return await refusal(self.ada, self.id, fields)


async def refusal(asker: Asker, organization_id: str, fields: str) -> dict[str, Any]:
    answer = await asker.answer(f"query($id: ID!) {{ organization(id: $id) {{ {fields} }} }}", id=organization_id)
    (error,) = answer["errors"]
    return error["extensions"]


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def books(edge: RunningEdge, ledger: RunningLedger) -> Books:
    return await kept(ledger, await edge.person())


async def kept(ledger: RunningLedger, ada: Asker) -> Books:
    organization_id = await ada.organization()
    path = (organization_id, *(ids.new(kind) for kind in (Kind.WORKSPACE, Kind.AGENT_GROUP, Kind.AGENT)))
    facts = [registry.NodeFact(node, path[0], path[: depth + 1], depth + 1) for depth, node in enumerate(path)]
    await registry.put_nodes(ledger.database, facts)
    await wallets.post(ledger.database, organization_id, "bought", "purchase", CREDITS, "", "test", "")
    spender = replace(await tenant(ledger, 0), path=path)
    budget = await spender.budget(CREDITS)
    for number in range(CHARGES):
        await spender.place(f"spent{number}")
        await spender.settle(f"spent{number}", 1)
    return Books(ada, organization_id, budget)


async def as_viewer(house: House, edge: RunningEdge, organization_id: str) -> Asker:
    """Sign somebody up who may read the organization and nothing else."""
    grace = await edge.person()
    async with as_owner(house) as identity:
        await identity.execute(
            """
            INSERT INTO memberships (person_id, organization_id, role, created_at)
            SELECT id, $2, 'viewer', now() FROM people WHERE email = $1
            """,
            grace.email,
            organization_id,
        )
    return grace


async def test_a_balance_is_of_now_of_a_transfer_or_of_a_moment(books: Books) -> None:
    lines = await books.ask('statement(account: "wallet") { lines { seq time balanceMicros } }')
    third = lines["statement"]["lines"][2]
    found = await books.ask(
        f"""now: balance(account: "wallet") {{ account settledMicros seq }}
            none: balance(account: "wallet", seq: "0") {{ settledMicros seq }}
            third: balance(account: "wallet", seq: "3") {{ settledMicros seq }}
            then: balance(account: "wallet", time: "{third["time"]}") {{ settledMicros seq }}
            budget: balance(account: "{books.budget}", seq: "3") {{ account settledMicros seq }}"""
    )
    at_third = {"settledMicros": str(CREDITS - 2 * TOKEN_MICROS), "seq": "3"}
    assert third["balanceMicros"] == at_third["settledMicros"]
    assert found == {
        "now": {
            "account": "wallet",
            "settledMicros": str(CREDITS - CHARGES * TOKEN_MICROS),
            "seq": str(CHARGES + 1),
        },
        "none": {"settledMicros": "0", "seq": "0"},
        "third": at_third,
        "then": at_third,
        "budget": {"account": books.budget, "settledMicros": str(-2 * TOKEN_MICROS), "seq": "3"},
    }


async def test_a_statement_foots_over_its_pages(books: Books) -> None:
    times = (await books.ask('statement(account: "wallet") { lines { time } }'))["statement"]["lines"]
    period = f'startTime: "{times[1]["time"]}", endTime: "{times[-1]["time"]}"'
    seen: list[dict[str, Any]] = []
    after = ""
    for _ in range(CHARGES):
        page = await books.ask(
            f"""statement(account: "wallet", {period}, first: 3{after}) {{ openingMicros closingMicros
                lines {{ seq kind requestId amountMicros balanceMicros actor reason }}
                pageInfo {{ endCursor hasNextPage }} }}"""
        )
        found = page["statement"]
        assert found["openingMicros"] == str(CREDITS)
        assert found["closingMicros"] == str(CREDITS - (CHARGES - 1) * TOKEN_MICROS)
        seen += found["lines"]
        assert len(found["lines"]) <= 3
        if not found["pageInfo"]["hasNextPage"]:
            break
        after = f', after: "{found["pageInfo"]["endCursor"]}"'
    assert seen == [
        {
            "seq": str(number + 2),
            "kind": "charge",
            "requestId": f"spent{number}",
            "amountMicros": str(-TOKEN_MICROS),
            "balanceMicros": str(CREDITS - (number + 1) * TOKEN_MICROS),
            "actor": "service:gateway",
            "reason": "",
        }
        for number in range(CHARGES - 1)
    ]


async def test_the_check_of_the_books_says_what_is_wrong_and_how_far_it_looked(
    edge: RunningEdge, ledger: RunningLedger
) -> None:
    books = await kept(ledger, await edge.person())
    right = (await books.ask(CHECK))["booksCheck"]
    assert right["discrepancies"] == []
    assert (right["transferSeq"], right["usageSeq"]) == (str(CHARGES + 1), str(CHARGES))
    async with owner(ledger.house) as connection:
        wallet = await connection.fetchval(
            """
            UPDATE checkpoints SET settled_micros = settled_micros + 1
             WHERE account_id = (SELECT id FROM accounts WHERE organization_id = $1 AND kind = 'wallet')
            RETURNING account_id
            """,
            books.id,
        )
    settled = CREDITS - CHARGES * TOKEN_MICROS
    expected = {"what": "settled", "subject": str(wallet), "expected": str(settled), "found": str(settled + 1)}
    assert (await books.ask(CHECK))["booksCheck"] == {**right, "discrepancies": [expected]}


async def test_a_document_may_ask_for_one_check_of_the_books(books: Books) -> None:
    query = "query($id: ID!) { organization(id: $id) { a: booksCheck { auditSeq } wallet { settledMicros } } }"
    one = await books.ada.answer(query, id=books.id)
    assert POINTS_MAX / 2 < one["extensions"]["cost"]["points"] <= POINTS_MAX
    two = await books.ada.answer(query.replace("wallet {", "b: booksCheck { auditSeq } wallet {"), id=books.id)
    assert two["errors"][0]["extensions"]["code"] == "OPERATION_TOO_COSTLY"


@pytest.mark.parametrize(
    "asks", ['balance(account: "wallet") { seq }', 'statement(account: "wallet") { lines { seq } }', CHECK]
)
async def test_a_viewer_reads_the_books_and_a_stranger_does_not(
    house: House, edge: RunningEdge, books: Books, asks: str
) -> None:
    viewer = await as_viewer(house, edge, books.id)
    seen = await viewer.ask(f"query($id: ID!) {{ organization(id: $id) {{ {asks} }} }}", id=books.id)
    assert seen["organization"] == await books.ask(asks)
    assert (await refusal(await edge.person(), books.id, asks))["code"] == "NOT_FOUND"


async def test_a_budget_of_another_organization_is_not_there(edge: RunningEdge, books: Books) -> None:
    stranger = await edge.person()
    told = await refusal(stranger, await stranger.organization(), f'balance(account: "{books.budget}") {{ seq }}')
    assert (told["code"], told["field"]) == ("NOT_FOUND", "account")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ('balance(account: "purse") { seq }', "account"),
        ('balance(account: "wallet", seq: "-1") { seq }', "seq"),
        (f'balance(account: "wallet", seq: "1", time: "{FAR}") {{ seq }}', "seq"),
        (f'balance(account: "wallet", time: "{FAR}") {{ seq }}', "time"),
        ('statement(account: "purse") { lines { seq } }', "account"),
        (f'statement(account: "wallet", startTime: "{FAR}") {{ lines {{ seq }} }}', "startTime"),
        (f'statement(account: "wallet", endTime: "{FAR}") {{ lines {{ seq }} }}', "endTime"),
        (
            f'statement(account: "wallet", startTime: "{NOON}", endTime: "{NOON}") {{ lines {{ seq }} }}',
            "endTime",
        ),
        ('statement(account: "wallet", first: 101) { lines { seq } }', "first"),
        ('statement(account: "wallet", first: 0) { lines { seq } }', "first"),
        ('statement(account: "wallet", after: "x") { lines { seq } }', "after"),
        (f'auditEntries(where: {{startTime: "{FAR}"}}) {{ nodes {{ seq }} }}', "startTime"),
    ],
)
async def test_a_bad_argument_is_named(books: Books, fields: str, field: str) -> None:
    told = await books.refusal(fields)
    assert (told["code"], told["field"]) == ("INVALID_FIELD", field)
