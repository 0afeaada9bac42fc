from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc.store import charges, statements
from mandate.ledger.v1 import statements_pb2 as pb
from mandate.ledger.v1 import statements_pb2_grpc as rpc
from mesh import caller, client, ids
from mesh.clock import SystemClock
from mesh.errors import InvalidArgument, MeshError, NotFound
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, forget_checkpoints, owner, tenant

CREDITS = 1_000 * TOKEN_MICROS
METHODS: dict[str, Callable[[rpc.StatementServiceStub], Any]] = {
    "GetBalance": lambda stub: stub.GetBalance,
    "GetStatement": lambda stub: stub.GetStatement,
    "VerifyBooks": lambda stub: stub.VerifyBooks,
}


async def ask(ledger: RunningLedger, issuer: TestIssuer, organization: str, method: str, request: Any) -> object:
    """Call the statement service as somebody who may read the organization's entries."""
    services = pb.DESCRIPTOR.services_by_name.values()
    async with ledger.house.channel("ledger", ledger.address, as_service="edge", services=services) as channel:
        with caller.acting(issuer.person(**{organization: "owner"})):
            return await client.call(METHODS[method](rpc.StatementServiceStub(channel)), request)


async def spend(spender: Tenant, count: int) -> None:
    """Hold and settle so many completions of several agents, in batches of every size."""
    chance = random.Random(count)  # noqa: S311
    keys = [f"s{number}" for number in range(count)]
    while keys:
        batch, keys = keys[: (size := chance.randint(1, 40))], keys[size:]
        await charges.place(
            spender.ledger.database, spender.organization, [(spender.placing(key, 2), True) for key in batch]
        )
        settlings = [spender.settling(key, chance.randint(0, 2)) for key in batch]
        await charges.settle(spender.ledger.database, spender.organization, settlings)


async def moved(ledger: RunningLedger, organization: str) -> list[tuple[int, datetime, int, int]]:
    """Return each transfer's number and time, and what it did to the wallet and to the budget of the agent."""
    rows = await ledger.database.rows(
        """
        SELECT t.seq, t.posted_at,
               coalesce((SELECT sum(e.amount_micros) FROM entries e JOIN accounts a ON a.id = e.account_id
                          WHERE e.organization_id = $1 AND e.seq = t.seq AND a.kind = 'wallet'), 0)::bigint AS wallet,
               coalesce((SELECT sum(e.amount_micros) FROM entries e JOIN accounts a ON a.id = e.account_id
                          WHERE e.organization_id = $1 AND e.seq = t.seq AND a.kind = 'budget'), 0)::bigint AS budget
          FROM transfers t WHERE t.organization_id = $1 ORDER BY t.seq
        """,
        organization,
    )
    return [(row["seq"], row["posted_at"], row["wallet"], row["budget"]) for row in rows]


@pytest.mark.parametrize("derived", ["whole", "thinned", "forgotten"])
async def test_a_balance_of_the_past_is_the_sum_of_the_rows_until_then(
    ledger: RunningLedger, issuer: TestIssuer, derived: str
) -> None:
    spender = await tenant(ledger, CREDITS)
    budget = await spender.budget(CREDITS)
    other = await spender.under(ids.new(ids.Kind.AGENT), *spender.path[1:-1])
    await spend(spender, 150)
    await spend(other, 70)
    async with owner(ledger.house) as connection:
        if derived == "forgotten":
            await forget_checkpoints(connection, spender.organization)
        if derived == "thinned":
            before = await connection.fetch("SELECT FROM checkpoints")
            while await statements.thin(ledger.database, spender.organization, SystemClock().now()):
                pass
            assert len(await connection.fetch("SELECT FROM checkpoints")) < len(before)
    wallet = spent = 0
    for seq, at, to_wallet, to_budget in await moved(ledger, spender.organization):
        wallet, spent = wallet + to_wallet, spent + to_budget
        if seq % 7:
            continue
        for account, expected in (("wallet", wallet), (budget, spent)):
            request = pb.GetBalanceRequest(organization_id=spender.organization, account=account, seq=seq)
            found = await ask(ledger, issuer, spender.organization, "GetBalance", request)
            assert found == pb.Balance(
                organization_id=spender.organization, account=account, settled_micros=expected, seq=seq
            ), (at, derived)
    assert (await spender.wallet())[0] == wallet


async def test_a_balance_as_of_a_moment_has_every_commit_until_then_whole(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    spender = await tenant(ledger, CREDITS)
    await spend(spender, 60)
    rows = await moved(ledger, spender.organization)
    for at in {at for _, at, _, _ in rows}:
        expected = sum(wallet for _, posted, wallet, _ in rows if posted <= at)
        for tick, change in ((0, 0), (-1, sum(wallet for _, posted, wallet, _ in rows if posted == at))):
            stamp = Timestamp()
            stamp.FromDatetime(at + timedelta(microseconds=tick))
            request = pb.GetBalanceRequest(organization_id=spender.organization, account="wallet", time=stamp)
            found = await ask(ledger, issuer, spender.organization, "GetBalance", request)
            assert isinstance(found, pb.Balance)
            assert found.settled_micros == expected - change


async def test_a_statement_foots_over_all_its_pages(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender = await tenant(ledger, CREDITS)
    budget = await spender.budget(CREDITS)
    await spend(spender, 120)
    rows = await moved(ledger, spender.organization)
    start = Timestamp()
    start.FromDatetime(rows[10][1])
    opening = sum(wallet for _, posted, wallet, _ in rows if posted < rows[10][1])
    expected = [(seq, wallet) for seq, posted, wallet, _ in rows if posted >= rows[10][1]]
    seen: list[tuple[int, int]] = []
    token, balance = "", opening
    while True:
        request = pb.GetStatementRequest(
            organization_id=spender.organization, account="wallet", start_time=start, page_size=17, page_token=token
        )
        page = await ask(ledger, issuer, spender.organization, "GetStatement", request)
        assert isinstance(page, pb.GetStatementResponse)
        assert (page.opening_micros, page.closing_micros) == (opening, (await spender.wallet())[0])
        for line in page.lines:
            balance += line.amount_micros
            assert line.balance_micros == balance
            seen.append((line.seq, line.amount_micros))
        if not (token := page.next_page_token):
            break
    assert seen == expected
    request = pb.GetStatementRequest(organization_id=spender.organization, account=budget, page_size=500)
    page = await ask(ledger, issuer, spender.organization, "GetStatement", request)
    assert isinstance(page, pb.GetStatementResponse)
    assert [line.amount_micros for line in page.lines] == [change for _, _, _, change in rows if change]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetBalanceRequest(account="purse"), "account"),
        (pb.GetBalanceRequest(account="wallet", seq=-1), "seq"),
        (pb.GetBalanceRequest(account="wallet", time=Timestamp(seconds=-(10**12))), "time"),
        (pb.GetStatementRequest(account="wallet", page_size=501), "page_size"),
        (pb.GetStatementRequest(account="wallet", page_token="eyJhZnRlciI6ICJ4In0="), "page_token"),
        (
            pb.GetStatementRequest(
                account="wallet", start_time=Timestamp(seconds=1_700_000_000), end_time=Timestamp(seconds=1_700_000_000)
            ),
            "end_time",
        ),
    ],
)
async def test_a_bad_field_of_a_statement_is_named(
    ledger: RunningLedger, issuer: TestIssuer, request_: pb.GetBalanceRequest | pb.GetStatementRequest, field: str
) -> None:
    spender = await tenant(ledger, 0)
    request_.organization_id = spender.organization
    method = "GetBalance" if isinstance(request_, pb.GetBalanceRequest) else "GetStatement"
    with pytest.raises(InvalidArgument) as refused:
        await ask(ledger, issuer, spender.organization, method, request_)
    assert refused.value.details["field"] == field


async def test_a_budget_of_another_organization_is_not_there(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender, stranger = await tenant(ledger, 0), await tenant(ledger, 0)
    request = pb.GetBalanceRequest(organization_id=spender.organization, account=await stranger.budget(1))
    with pytest.raises(NotFound):
        await ask(ledger, issuer, spender.organization, "GetBalance", request)


FAULTS = {
    "settled": "UPDATE checkpoints SET settled_micros = settled_micros + 1 WHERE account_id = {wallet}",
    "held": "UPDATE checkpoints SET held_micros = held_micros + 1 WHERE account_id = {wallet}",
    "open": "DELETE FROM open_holds WHERE organization_id = '{organization}'",
    "charge": "UPDATE usage SET breach_micros = breach_micros + 1 WHERE organization_id = '{organization}' AND seq = 1",
    "chain": "UPDATE audit SET line = replace(line, 'settled', 'sattled') WHERE organization_id = '{organization}'",
    "gap": "DELETE FROM audit WHERE organization_id = '{organization}' AND seq = 1",
}


@pytest.mark.parametrize("what", FAULTS)
async def test_what_was_changed_behind_the_ledgers_back_is_found(
    ledger: RunningLedger, issuer: TestIssuer, what: str
) -> None:
    spender = await tenant(ledger, CREDITS)
    await spend(spender, 5)
    await spender.place("open", 1)
    request = pb.VerifyBooksRequest(organization_id=spender.organization)
    right = await ask(ledger, issuer, spender.organization, "VerifyBooks", request)
    assert isinstance(right, pb.VerifyBooksResponse)
    assert not right.discrepancies
    assert right.usage_seq == 5
    async with owner(ledger.house) as connection, connection.transaction():
        wallet = await connection.fetchval(
            "SELECT id FROM accounts WHERE organization_id = $1 AND kind = 'wallet'", spender.organization
        )
        for table in ("usage", "audit"):
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        await connection.execute(FAULTS[what].format(wallet=wallet, organization=spender.organization))
        for table in ("usage", "audit"):
            await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
    found = await ask(ledger, issuer, spender.organization, "VerifyBooks", request)
    assert isinstance(found, pb.VerifyBooksResponse)
    assert what in {wrong.what for wrong in found.discrepancies}


async def test_a_viewer_of_another_organization_reads_no_statement(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender, stranger = await tenant(ledger, 0), await tenant(ledger, 0)
    for method, request in (
        ("GetBalance", pb.GetBalanceRequest(organization_id=spender.organization, account="wallet")),
        ("GetStatement", pb.GetStatementRequest(organization_id=spender.organization, account="wallet")),
        ("VerifyBooks", pb.VerifyBooksRequest(organization_id=spender.organization)),
    ):
        with pytest.raises(MeshError):
            await ask(ledger, issuer, stranger.organization, method, request)


async def test_the_list_of_open_holds_is_made_anew_by_the_operator(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, CREDITS)
    for key in ("a", "b", "c"):
        await spender.place(key, 1)
    await spender.settle("c", 1)
    services = pb.DESCRIPTOR.services_by_name.values()
    async with owner(ledger.house) as connection:
        listed = "SELECT array_agg(request_id ORDER BY request_id) FROM open_holds WHERE organization_id = $1"
        await connection.execute("DELETE FROM open_holds WHERE organization_id = $1", spender.organization)
        async with ledger.house.channel("ledger", ledger.address, as_service="operator", services=services) as channel:
            stub = rpc.StatementServiceStub(channel)
            request = pb.RebuildDerivedRequest(organization_id=spender.organization)
            assert (await client.call(stub.RebuildDerived, request)).open_holds == 2
            assert (await client.call(stub.RebuildDerived, request)).open_holds == 0
            with pytest.raises(NotFound):
                await client.call(stub.RebuildDerived, pb.RebuildDerivedRequest(organization_id="org_none"))
        assert await connection.fetchval(listed, spender.organization) == ["a", "b"]
    assert await spender.settle("a", 1)
    assert await spender.wallet() == (CREDITS - 2 * TOKEN_MICROS, TOKEN_MICROS)


async def test_a_budget_has_no_balance_before_it_was_made_and_then_what_was_spent_before(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    spender = await tenant(ledger, CREDITS)
    await spend(spender, 10)
    budget = await spender.budget(CREDITS)
    opened = -sum(wallet for _, _, wallet, _ in (await moved(ledger, spender.organization))[1:])
    last = await statements.seq_at(ledger.database, spender.organization, None)
    for seq, expected in ((0, 0), (last, 0)):
        request = pb.GetBalanceRequest(organization_id=spender.organization, account=budget, seq=seq)
        found = await ask(ledger, issuer, spender.organization, "GetBalance", request)
        assert isinstance(found, pb.Balance)
        assert found.settled_micros == expected
    for spent in (0, TOKEN_MICROS):
        request = pb.GetBalanceRequest(organization_id=spender.organization, account=budget)
        found = await ask(ledger, issuer, spender.organization, "GetBalance", request)
        assert isinstance(found, pb.Balance)
        assert found.settled_micros == -opened - spent
        await spender.place("next", 1)
        await spender.settle("next", 1)
