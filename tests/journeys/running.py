"""A whole mesh of processes for a test, driven as a stranger would: the command, GraphQL and HTTP."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

MANDATE = (sys.executable, "-m", "mesh")
PORTS_EACH = 100  # the mesh's own ports lie within a hundred of its base port
OFFSETS = (0, 1, 10, 20, 30, 40, 41, 50, 60, 70, 80, 81, 90, 98, 99)


_claims: list[IO[str]] = []  # kept open: each holds its ports against the other test processes of this machine


def free_base_port() -> int:
    """Claim a hundred ports in a row that nobody listens on, below those that outgoing connections are given."""
    folder = Path(tempfile.gettempdir()) / "mandate-test-ports"
    folder.mkdir(exist_ok=True)
    bases = list(range(20_000, 32_000, PORTS_EACH))
    random.shuffle(bases)
    for base in bases:
        claim = (folder / str(base)).open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            continue
        if all(_is_free(base + offset) for offset in OFFSETS):
            _claims.append(claim)
            return base
        claim.close()
    message = "no free ports"
    raise RuntimeError(message)


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class Tenant:
    """An organization with one agent, its key, and the person who owns it."""

    token: str
    organization_id: str
    workspace_id: str
    agent_group_id: str
    agent_id: str
    api_key: str
    api_key_id: str


@dataclass
class Mesh:
    """One home and its ports."""

    home: Path
    base_port: int = field(default_factory=free_base_port)
    extra: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # where the command is run

    @property
    def environment(self) -> dict[str, str]:
        """Return what the command is run with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MANDATE_", "OPENAI_"))}  # noqa: TID251  # a test starts processes
        return kept | {
            "MANDATE_HOME": str(self.home),
            "MANDATE_BASE_PORT": str(self.base_port),
            "MANDATE_GATEWAY_PORT": str(self.base_port + 98),
            "MANDATE_EDGE_PORT": str(self.base_port + 99),
            "MANDATE_ENV_FILE": "",
            **self.extra,
        }

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.base_port + 98}"

    @property
    def graphql_url(self) -> str:
        return f"http://127.0.0.1:{self.base_port + 99}/graphql"

    def run(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """Run one `mandate` command to its end."""
        return subprocess.run(
            [*MANDATE, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextlib.contextmanager
    def up(self, *arguments: str) -> Generator[None]:
        """Have it running inside the block."""
        started = self.run("up", "--detach", *arguments)
        try:
            assert started.returncode == 0, started.stderr + started.stdout
            yield
        finally:
            self.run("down", "--wipe")

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says."""
        shown = self.run("status", "--json")
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout)

    def pid(self, name: str, replica: int = 0) -> int:
        """Return the process id of a replica."""
        found = [p["pid"] for p in self.status()["processes"] if (p["name"], p["replica"]) == (name, replica)]
        return int(found[0])

    def kill(self, name: str, replica: int = 0) -> None:
        """Kill a replica as the kernel would when memory is short."""
        os.kill(self.pid(name, replica), signal.SIGKILL)

    def graphql(self, query: str, variables: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
        """Run one operation and return its data; an error fails the test."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = {"query": query, "variables": variables or {}}
        answer = httpx.post(self.graphql_url, json=body, headers=headers, timeout=20).json()
        assert not answer.get("errors"), answer
        return answer["data"]

    def mutate(self, name: str, kind: str, values: dict[str, Any], fields: str, token: str = "") -> dict[str, Any]:
        """Run one mutation and return its payload; a user error fails the test."""
        shape = f"{fields} userErrors {{ code field message }}"
        query = f"mutation M($input: {kind}!) {{ {name}(input: $input) {{ {shape} }} }}"
        payload = self.graphql(query, {"input": values}, token)[name]
        assert payload["userErrors"] == [], payload
        return payload

    def tenant(self, micros: int) -> Tenant:
        """Sign a new person up and make everything down to an agent's key."""
        person = {"email": f"{uuid.uuid4().hex}@example.com", "password": uuid.uuid4().hex, "name": "A person"}
        token = self.mutate("signUp", "SignUpInput", person, "accessToken")["accessToken"]
        made = self.mutate(
            "createOrganization",
            "CreateOrganizationInput",
            {"name": "Org", "idempotencyKey": "o"},
            "organization { id }",
            token,
        )
        org = made["organization"]["id"]
        if micros:
            bought = {"organizationId": org, "micros": str(micros), "idempotencyKey": "buy"}
            self.mutate("purchaseCredits", "PurchaseCreditsInput", bought, "transfer { id }", token)
        made = self.mutate(
            "createWorkspace", "CreateWorkspaceInput", {"organizationId": org, "name": "W"}, "workspace { id }", token
        )
        workspace = made["workspace"]["id"]
        made = self.mutate(
            "createAgentGroup",
            "CreateAgentGroupInput",
            {"workspaceId": workspace, "name": "G"},
            "agentGroup { id }",
            token,
        )
        group = made["agentGroup"]["id"]
        made = self.mutate(
            "createAgent", "CreateAgentInput", {"agentGroupId": group, "name": "A"}, "agent { id }", token
        )
        agent = made["agent"]["id"]
        made = self.mutate(
            "issueApiKey", "IssueApiKeyInput", {"agentId": agent, "name": "K"}, "apiKey { id prefix } plaintext", token
        )
        return Tenant(token, org, workspace, group, agent, made["plaintext"], made["apiKey"]["id"])

    def wallet(self, tenant: Tenant) -> dict[str, int]:
        """Return the wallet in micro-credits."""
        query = "query Q($id: ID!) { organization(id: $id) { wallet { settledMicros heldMicros availableMicros } } }"
        wallet = self.graphql(query, {"id": tenant.organization_id}, tenant.token)["organization"]["wallet"]
        return {name: int(value) for name, value in wallet.items()}
