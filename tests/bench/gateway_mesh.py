"""Our own gateway with its whole mesh behind it, durable, and agents that may spend; its books at the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from ledger_svc.store import statements
from mesh import db
from mesh.embedded import postgres
from mesh.embedded.provision import addresses
from mesh.home import Home
from mesh.services import POSTGRES_OFFSET
from mesh.story import Graph
from tests.bench.gateway_answers import Charge, question, request
from tests.bench.gateway_load import STREAM, WHOLE, Target, ask_exactly
from tests.bench.gateway_peers import KEY, PATH, Provider
from tests.bench.gateway_processes import MEASURED_CORE, OTHERS_CORE, pin
from tests.journeys.running import Mesh

OURS = "Mandate"
MODEL = "gpt-6.2-sol"  # one that has a price
BOUGHT_MICROS = BUDGET_MICROS = 10**15
PER_MINUTE = 100_000_000  # requests and tokens: more than anybody asks for here, and counted all the same
PERIODS = ("DAILY", "MONTHLY", "TOTAL")
WORKSPACES, GROUPS_EACH = 2, 5
AT_ONCE = 8
FIRST_CONNECTIONS, FIRST_REQUESTS_EACH = 20, 4  # so that no key is new to the gateway once anything is timed
READ_SECONDS = 120
PROCESSES = ("gateway", "ledger", "postgres", "valkey", "identity", "vault", "edge")


@dataclass
class Ours:
    """The mesh as a target, and everything that its answers said they cost."""

    mesh: Mesh
    target: Target
    organization_id: str
    nodes: int
    charges: list[Charge] = field(default_factory=list)

    async def check_books(self) -> str:
        """Compare every charge that was told with the ledger's rows, and recompute the books; say what was found."""
        assert all(process["restarts"] == 0 for process in self.mesh.status()["processes"])
        told = {charge.request_id: charge.micros for charge in self.charges}
        assert len(told) == len(self.charges), "two answers name one request"
        home = Home.open(self.mesh.home)
        maintenance = postgres.owner_dsn(self.mesh.base_port + POSTGRES_OFFSET, home.secret(postgres.SUPERUSER))
        dsn = addresses(maintenance, {"ledger": home.secret("mandate_ledger")}).services["ledger"]
        async with db.connect(dsn, service="ledger") as database:
            async with database.connection() as connection:
                found = await connection.fetch(
                    "SELECT request_id, charged_micros FROM usage WHERE organization_id = $1 AND outcome = 'ok'"
                    "   AND NOT estimated",
                    self.organization_id,
                    timeout=READ_SECONDS,
                )
            rows = {str(row["request_id"]): int(row["charged_micros"]) for row in found}
            assert rows == told, f"{len(rows)} rows, {len(told)} answers, {len(rows.items() ^ told.items())} differ"
            await self._check_accounts(database, sum(told.values()))
            wrong, _ = await statements.verify(database, self.organization_id)
            assert not wrong, wrong
        return (
            f"{len(rows):,} answers are {len(rows):,} usage rows, {sum(rows.values()):,} micro-credits, to the last one"
        )

    async def _check_accounts(self, database: db.Database, charged_micros: int) -> None:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await database.value("SELECT current_setting($1)", setting) == "on", setting
        windows = await database.value(
            "SELECT count(DISTINCT budget_id) FROM accounts WHERE organization_id = $1 AND kind = 'budget'",
            self.organization_id,
        )
        assert windows == len(PERIODS) * self.nodes, windows
        wallet = await statements.account(database, self.organization_id, "wallet", None)
        assert wallet
        last = await statements.seq_at(database, self.organization_id, None)
        left = await statements.balance_at(database, self.organization_id, wallet, last)
        assert left == BOUGHT_MICROS - charged_micros, (left, charged_micros)


@asynccontextmanager
async def ours(asked: Provider, home: Path, agents: int) -> AsyncGenerator[Ours]:
    """Run a whole mesh, with the gateway alone on its core, and settle the agents in."""
    told = {"OPENAI_BASE_URL": asked.url, "OPENAI_API_KEY": KEY}
    mesh = Mesh(home, extra=told)
    with mesh.up():
        processes = {process["name"]: int(process["pid"]) for process in mesh.status()["processes"]}
        for name, pid in processes.items():
            pin(pid, MEASURED_CORE if name == "gateway" else OTHERS_CORE)
        async with httpx.AsyncClient(timeout=30) as client:
            settled = await _settle_in(Graph(mesh.graphql_url, client), agents)
        port = mesh.base_port + 98
        requests = {
            kind: [
                request(PATH, port, [("authorization", f"Bearer {key}")], question(MODEL, streamed=kind == STREAM))
                for key in settled.keys
            ]
            for kind in (WHOLE, STREAM)
        }
        target = Target(OURS, port, requests, {name: processes[name] for name in PROCESSES}, governed=True)
        found = Ours(mesh, target, settled.organization_id, settled.nodes)
        found.charges += await ask_exactly(target, WHOLE, FIRST_CONNECTIONS, FIRST_REQUESTS_EACH * agents)
        yield found


@dataclass(frozen=True)
class Settled:
    """An organization whose agents may spend."""

    organization_id: str
    nodes: int
    keys: Sequence[str]


async def _settle_in(graph: Graph, agents: int) -> Settled:
    """Make an organization of 2 workspaces and 10 groups, and in each group as many agents as come on it."""
    person = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_urlsafe(18), "name": "A person"}
    made = await graph.mutate("signUp", "SignUpInput", person, "accessToken")
    setting = _Setting(replace(graph, access_token=made["accessToken"]))
    organization = await setting.made("Organization", {"name": "Org", "idempotencyKey": "org"})
    bought = {"organizationId": organization, "micros": str(BOUGHT_MICROS), "idempotencyKey": "buy"}
    await setting.graph.mutate("purchaseCredits", "PurchaseCreditsInput", bought, "transfer { id }")
    nodes = {organization: "organizationId"}
    workspaces = [
        await setting.made("Workspace", {"organizationId": organization, "name": f"W{number}"})
        for number in range(WORKSPACES)
    ]
    nodes |= dict.fromkeys(workspaces, "workspaceId")
    groups = [
        await setting.made("AgentGroup", {"workspaceId": workspace, "name": f"G{number}"})
        for workspace in workspaces
        for number in range(GROUPS_EACH)
    ]
    nodes |= dict.fromkeys(groups, "agentGroupId")
    found = await asyncio.gather(*(setting.agent(groups[number % len(groups)], number) for number in range(agents)))
    nodes |= dict.fromkeys((agent for agent, _ in found), "agentId")
    await asyncio.gather(*(setting.budgets(node, kind) for node, kind in nodes.items()))
    return Settled(organization, len(nodes), [key for _, key in found])


class _Setting:
    """Mutations, a few at once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def made(self, kind: str, values: dict[str, str]) -> str:
        """Make a node of the hierarchy and return its id."""
        name = kind[0].lower() + kind[1:]
        made = await self.graph.mutate(f"create{kind}", f"Create{kind}Input", values, f"{name} {{ id }}")
        return str(made[name]["id"])

    async def agent(self, group: str, number: int) -> tuple[str, str]:
        """Make an agent with a policy and a key; return its id and the key."""
        async with self._turns:
            agent = await self.made("Agent", {"agentGroupId": group, "name": f"A{number}"})
            policy = {"target": {"agentId": agent}, "rpm": PER_MINUTE, "tpm": PER_MINUTE}
            await self.graph.mutate("createPolicy", "CreatePolicyInput", policy, "policy { id }")
            key = {"agentId": agent, "name": "bench"}
            return agent, (await self.graph.mutate("issueApiKey", "IssueApiKeyInput", key, "plaintext"))["plaintext"]

    async def budgets(self, node: str, kind: str) -> None:
        """Give a node a budget of each period."""
        async with self._turns:
            for period in PERIODS:
                values = {"target": {kind: node}, "period": period, "limitMicros": str(BUDGET_MICROS)}
                named = values | {"idempotencyKey": f"{node}.{period}"}
                await self.graph.mutate("createBudget", "CreateBudgetInput", named, "budget { id }")
