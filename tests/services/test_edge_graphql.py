from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger_svc.signing import Signer
from mesh import audit_keys, db
from mesh.clock import SystemClock
from mesh.testing import House
from mesh.verify import Complete, prove
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running
from tests.services.identity_running import PASSWORD, fresh


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


async def test_a_person_logs_in_with_the_password_of_the_sign_up(edge: RunningEdge, ada: Asker) -> None:
    query = "mutation($i: LogInInput!) { logIn(input: $i) { accessToken person { email } userErrors { code } } }"
    answer = (await edge.post(query, {"i": {"email": ada.email, "password": PASSWORD}})).json()
    assert answer["data"]["logIn"]["person"]["email"] == ada.email
    assert answer["data"]["logIn"]["accessToken"]


async def test_a_wrong_password_is_a_user_error(edge: RunningEdge, ada: Asker) -> None:
    query = "mutation($i: LogInInput!) { logIn(input: $i) { accessToken userErrors { code field } } }"
    answer = (await edge.post(query, {"i": {"email": ada.email, "password": "wrong password"}})).json()
    assert answer["data"]["logIn"]["accessToken"] is None
    assert len(answer["data"]["logIn"]["userErrors"]) == 1


async def test_a_bad_field_of_a_sign_up_is_named_as_in_the_input(edge: RunningEdge) -> None:
    query = "mutation($i: SignUpInput!) { signUp(input: $i) { accessToken userErrors { code field } } }"
    answer = (await edge.post(query, {"i": {"email": "a@example.com", "password": "short", "name": "A"}})).json()
    assert answer["data"]["signUp"]["userErrors"] == [{"code": "INVALID_FIELD", "field": "password"}]


async def test_me_lists_ones_organizations_with_the_role(ada: Asker) -> None:
    organization_id = await ada.organization()
    data = await ada.ask("{ me { email organizations(first: 100) { nodes { id role } } } }")
    assert data["me"]["email"] == ada.email
    assert {"id": organization_id, "role": "owner"} in data["me"]["organizations"]["nodes"]


async def test_me_is_null_for_nobody(edge: RunningEdge) -> None:
    assert (await edge.post("{ me { id } }")).json()["data"] == {"me": None}


async def test_an_organization_made_is_read_in_the_same_operation(ada: Asker) -> None:
    made = await ada.made(
        "createOrganization",
        "organization { name wallet { settledMicros } }",
        name="Acme",
        idempotencyKey=fresh(),
    )
    assert made["organization"] == {"name": "Acme", "wallet": {"settledMicros": "0"}}


async def test_an_organization_is_renamed(ada: Asker) -> None:
    organization_id = await ada.organization()
    made = await ada.made("updateOrganization", "organization { name }", id=organization_id, name="Renamed")
    assert made["organization"]["name"] == "Renamed"


async def test_the_hierarchy_is_listed_from_its_organization(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    query = """query($id: ID!, $workspace: ID!, $group: ID!) { organization(id: $id) {
        workspaces { nodes { id } } agentGroups(workspaceId: $workspace) { nodes { id workspaceId } }
        agents(below: $group) { nodes { id agentGroupId state } pageInfo { endCursor hasNextPage } } } }"""
    data = await ada.ask(query, id=agent.organization_id, workspace=agent.workspace_id, group=agent.group_id)
    assert data["organization"] == {
        "workspaces": {"nodes": [{"id": agent.workspace_id}]},
        "agentGroups": {"nodes": [{"id": agent.group_id, "workspaceId": agent.workspace_id}]},
        "agents": {
            "nodes": [{"id": agent.id, "agentGroupId": agent.group_id, "state": "ACTIVE"}],
            "pageInfo": {"endCursor": None, "hasNextPage": False},
        },
    }


async def test_an_agent_is_suspended_and_resumed(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    assert (await ada.made("suspendAgent", "agent { state }", id=agent.id))["agent"]["state"] == "SUSPENDED"
    assert (await ada.ask("query($id: ID!) { agent(id: $id) { state } }", id=agent.id))["agent"]["state"] == "SUSPENDED"
    assert (await ada.made("resumeAgent", "agent { state }", id=agent.id))["agent"]["state"] == "ACTIVE"


async def test_a_key_is_told_once_and_revoked(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    values = {"agentId": agent.id, "name": "laptop", "expiresAt": "2099-01-02T03:04:05Z", "idempotencyKey": fresh()}
    fields = "apiKey { id prefix expiresAt } plaintext replayed"
    issued = await ada.made("issueApiKey", fields, **values)
    assert issued["plaintext"].startswith(issued["apiKey"]["prefix"])
    assert issued["apiKey"]["expiresAt"] == "2099-01-02T03:04:05+00:00"
    again = await ada.made("issueApiKey", fields, **values)
    assert (again["plaintext"], again["replayed"], again["apiKey"]) == (None, True, issued["apiKey"])
    revoked = await ada.made("revokeApiKey", "apiKey { revokeTime }", id=issued["apiKey"]["id"])
    assert revoked["apiKey"]["revokeTime"]
    query = "query($id: ID!) { agent(id: $id) { apiKeys { nodes { id revokeTime } } } }"
    listed = (await ada.ask(query, id=agent.id))["agent"]["apiKeys"]["nodes"]
    assert [key["id"] for key in listed] == [issued["apiKey"]["id"]]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_an_end_of_a_key_beyond_all_years_is_a_user_error(ada: Asker, time: str) -> None:
    agent = await ada.agent(await ada.organization())
    payload = await ada.payload("issueApiKey", "plaintext", agentId=agent.id, name="laptop", expiresAt=time)
    assert [(error["code"], error["field"]) for error in payload["userErrors"]] == [("INVALID_FIELD", "expiresAt")]


async def test_an_organization_lists_the_keys_of_one_of_its_agents(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    await ada.made("issueApiKey", "apiKey { id }", agentId=agent.id, name="laptop")
    query = "query($id: ID!, $a: ID!) { organization(id: $id) { apiKeys(agentId: $a) { nodes { name } } } }"
    data = await ada.ask(query, id=agent.organization_id, a=agent.id)
    assert data["organization"]["apiKeys"]["nodes"] == [{"name": "laptop"}]


async def test_a_provider_credential_goes_in_and_never_comes_out(ada: Asker) -> None:
    organization_id = await ada.organization()
    values = {"organizationId": organization_id, "provider": "openai", "secret": "sk-1234567890abcd", "label": "ours"}
    made = await ada.made("addProviderCredential", "providerCredential { id hint baseUrl }", **values)
    assert made["providerCredential"]["hint"] == "abcd"
    query = "query($id: ID!) { organization(id: $id) { providerCredentials { nodes { id removeTime } } } }"
    listed = (await ada.ask(query, id=organization_id))["organization"]["providerCredentials"]["nodes"]
    assert listed == [{"id": made["providerCredential"]["id"], "removeTime": None}]
    removed = await ada.made("removeProviderCredential", "providerCredential { removeTime }", id=listed[0]["id"])
    assert removed["providerCredential"]["removeTime"]


async def test_a_purchase_under_one_key_counts_once_and_is_refundable(ada: Asker) -> None:
    organization_id = await ada.organization()
    values = {"organizationId": organization_id, "micros": "5000000", "idempotencyKey": fresh("buy")}
    fields = "transfer { id kind amountMicros seq } wallet { settledMicros } replayed"
    bought = await ada.made("purchaseCredits", fields, **values)
    again = await ada.made("purchaseCredits", fields, **values)
    assert (bought["replayed"], again["replayed"]) == (False, True)
    assert again["transfer"] == bought["transfer"]
    assert again["wallet"]["settledMicros"] == "5000000"
    refunded = await ada.made(
        "refundPurchase",
        "wallet { availableMicros }",
        organizationId=organization_id,
        purchaseIdempotencyKey=values["idempotencyKey"],
        micros="2000000",
        idempotencyKey=fresh("refund"),
    )
    assert refunded["wallet"]["availableMicros"] == "3000000"


async def test_another_amount_under_a_used_key_is_refused_naming_the_field(ada: Asker) -> None:
    values = {"organizationId": await ada.organization(), "idempotencyKey": fresh("buy")}
    await ada.made("purchaseCredits", "replayed", micros="1", **values)
    refused = await ada.payload("purchaseCredits", "transfer { id }", micros="2", **values)
    assert refused["transfer"] is None
    assert [error["field"] for error in refused["userErrors"]] == ["micros"]


async def test_money_beyond_32_bits_is_exact(ada: Asker) -> None:
    organization_id = await ada.organization()
    micros = str(10**15)
    await ada.made("purchaseCredits", "replayed", organizationId=organization_id, micros=micros, idempotencyKey=fresh())
    query = "query($id: ID!) { organization(id: $id) { wallet { settledMicros heldMicros availableMicros } } }"
    wallet = (await ada.ask(query, id=organization_id))["organization"]["wallet"]
    assert wallet == {"settledMicros": micros, "heldMicros": "0", "availableMicros": micros}


@pytest.mark.parametrize("micros", ["1.5", "", "1e3", 1.5, True, "99999999999999999999"])
async def test_what_is_no_whole_number_is_no_money(ada: Asker, micros: object) -> None:
    query = "mutation($i: PurchaseCreditsInput!) { purchaseCredits(input: $i) { replayed } }"
    answer = await ada.answer(query, i={"organizationId": "org_x", "micros": micros, "idempotencyKey": "k"})
    assert "data" not in answer
    assert answer["errors"][0]["extensions"]["code"] == "BAD_REQUEST"


async def test_what_happened_is_read_back(ada: Asker) -> None:
    organization_id = await ada.organization()
    await ada.made("purchaseCredits", "replayed", organizationId=organization_id, micros="7", idempotencyKey=fresh())
    query = """query($id: ID!) { organization(id: $id) {
        transfers { nodes { kind amountMicros debitAccount creditAccount actor } }
        entries { nodes { account amountMicros } } usage { nodes { requestId } } uncertainHolds { nodes { requestId } }
        auditExport(first: 10) { lines hasMore lastSeq } } }"""
    found = (await ada.ask(query, id=organization_id))["organization"]
    assert [node["kind"] for node in found["transfers"]["nodes"]] == ["purchase"]
    assert sum(int(node["amountMicros"]) for node in found["entries"]["nodes"]) == 0
    assert (found["usage"]["nodes"], found["uncertainHolds"]["nodes"]) == ([], [])
    assert any("credits.purchase" in line for line in found["auditExport"]["lines"])


async def test_the_audit_chain_is_listed_signed_and_proved(ada: Asker, house: House, tmp_path: Path) -> None:
    organization_id = await ada.organization()
    await ada.made("purchaseCredits", "replayed", organizationId=organization_id, micros="7", idempotencyKey=fresh())
    listed = """query($id: ID!, $where: AuditFilter) { organization(id: $id) {
        auditEntries(where: $where) { nodes { seq actor action source sourceSeq detail } } } }"""
    for where, count in (
        ({"action": "credits.*"}, 1),
        ({"action": "credits.purchase", "startTime": "2026-01-01T00:00:00Z"}, 1),
        ({"action": "credits.*", "endTime": "2026-01-01T00:00:00Z"}, 0),
        ({"actor": "nobody"}, 0),
    ):
        found = (await ada.ask(listed, id=organization_id, where=where))["organization"]["auditEntries"]["nodes"]
        assert len(found) == count, where
    head = "query($id: ID!) { organization(id: $id) { auditHead { seq keyId line } } }"
    unsigned = await ada.answer(head, id=organization_id)
    assert unsigned["errors"][0]["extensions"]["code"] == "AUDIT_NOT_SIGNED"
    audit_keys.create(tmp_path / "audit.json", SystemClock().now())
    async with db.connect(house.dsn("ledger"), service="ledger") as database:
        await Signer(database, tmp_path / "audit.json", 60).sign_all()
    signed = (await ada.ask(head, id=organization_id))["organization"]["auditHead"]
    proof = "query($id: ID!) { organization(id: $id) { auditProof(seq: 1) { lines } } }"
    lines = (await ada.ask(proof, id=organization_id))["organization"]["auditProof"]["lines"]
    assert lines[2] == signed["line"]
    assert isinstance(prove("".join(f"{line}\n" for line in lines).encode()), Complete)


async def test_a_budget_is_created_updated_listed_and_enabled(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    made = await ada.made(
        "createBudget",
        "budget { id targetId period limitMicros autoDisable disabled settledMicros heldMicros }",
        target={"agentId": agent.id},
        period="DAILY",
        limitMicros="1000",
        autoDisable=True,
        idempotencyKey=fresh(),
    )
    budget_id = made["budget"]["id"]
    assert made["budget"]["targetId"] == agent.id
    changed = await ada.made("updateBudget", "budget { limitMicros autoDisable }", id=budget_id, limitMicros="2000")
    assert changed["budget"] == {"limitMicros": "2000", "autoDisable": True}
    assert (await ada.made("enableBudget", "budget { disabled }", id=budget_id))["budget"] == {"disabled": False}
    query = "query($id: ID!) { organization(id: $id) { budgets { nodes { id limitMicros period windowStartTime } } } }"
    (listed,) = (await ada.ask(query, id=agent.organization_id))["organization"]["budgets"]["nodes"]
    assert (listed["id"], listed["limitMicros"], listed["period"]) == (budget_id, "2000", "DAILY")


@pytest.mark.parametrize("target", [{}, {"agentId": "agt_x", "workspaceId": "ws_x"}])
async def test_a_target_is_exactly_one_object(ada: Asker, target: dict[str, str]) -> None:
    values = {"target": target, "period": "TOTAL", "limitMicros": "1", "idempotencyKey": fresh()}
    for name, more in (("createBudget", values), ("createPolicy", {"target": target})):
        refused = await ada.payload(name, "__typename", **more)
        assert [(error["code"], error["field"]) for error in refused["userErrors"]] == [("INVALID_FIELD", "target")]


async def test_resolving_a_hold_that_is_not_there_is_a_user_error(ada: Asker) -> None:
    values = {"organizationId": await ada.organization(), "holdRequestId": "req_nothing", "resolution": "RELEASE"}
    refused = await ada.payload("resolveUncertainHold", "transfer { id }", **values)
    assert len(refused["userErrors"]) == 1


async def test_another_persons_organization_looks_like_none(edge: RunningEdge, ada: Asker) -> None:
    organization_id = await ada.organization()
    eve = await edge.person()
    query = "query($id: ID!) { organization(id: $id) { name } }"
    for asked in (organization_id, organization_id[:-1] + "0", "org_x", ""):
        answer = await eve.answer(query, id=asked)
        assert answer["data"] == {"organization": None}
        assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        assert answer["errors"][0]["extensions"]["service"] == "identity"


async def test_an_id_is_named_as_the_input_names_it(ada: Asker) -> None:
    refused = await ada.payload("suspendAgent", "agent { id }", id="agt_nobody")
    assert refused["userErrors"][0]["field"] == "id"


async def test_nobody_changes_nothing(edge: RunningEdge) -> None:
    query = 'mutation { createOrganization(input: {name: "A", idempotencyKey: "k"}) { organization { id } } }'
    answer = (await edge.post(query)).json()
    assert answer["data"] == {"createOrganization": None}
    assert answer["errors"][0]["extensions"]["code"] == "NOT_LOGGED_IN"


@pytest.mark.parametrize("first", [0, -1, 101])
async def test_the_size_of_a_page_has_bounds(ada: Asker, first: int) -> None:
    answer = await ada.answer("query($n: Int!) { me { organizations(first: $n) { nodes { id } } } }", n=first)
    extensions = answer["errors"][0]["extensions"]
    assert (extensions["code"], extensions["field"]) == ("INVALID_FIELD", "first")


async def test_pages_follow_each_other_to_the_end(ada: Asker) -> None:
    organization_id = await ada.organization()
    for number in range(3):
        await ada.made("createWorkspace", "workspace { id }", organizationId=organization_id, name=f"W{number}")
    query = """query($id: ID!, $after: String) { organization(id: $id) {
        workspaces(first: 2, after: $after) { nodes { name } pageInfo { endCursor hasNextPage } } } }"""
    first = (await ada.ask(query, id=organization_id))["organization"]["workspaces"]
    second = (await ada.ask(query, id=organization_id, after=first["pageInfo"]["endCursor"]))["organization"][
        "workspaces"
    ]
    assert [node["name"] for node in first["nodes"] + second["nodes"]] == ["W0", "W1", "W2"]
    assert (first["pageInfo"]["hasNextPage"], second["pageInfo"]["hasNextPage"]) == (True, False)


async def test_the_calls_of_an_operation_do_not_grow_with_its_lists(ada: Asker) -> None:
    organization_id = await ada.organization()
    agent = await ada.agent(organization_id)
    query = """query($id: ID!) { me { organizations { nodes { id role } } } organization(id: $id) { name
        wallet { settledMicros } workspaces { nodes { id } } agentGroups { nodes { id } } agents { nodes { id name } }
        budgets { nodes { id } } policies { nodes { id } } providerCredentials { nodes { id } }
        entries { nodes { account } } usage { nodes { model } } } }"""
    with_one = await ada.answer(query, id=organization_id)
    for number in range(9):
        await ada.made("createAgent", "agent { id }", agentGroupId=agent.group_id, name=f"A{number}")
        await ada.made("createWorkspace", "workspace { id }", organizationId=organization_id, name=f"W{number}")
        await ada.organization()
    with_ten = await ada.answer(query, id=organization_id)
    assert len(with_one["data"]["organization"]["agents"]["nodes"]) == 1
    assert len(with_ten["data"]["organization"]["agents"]["nodes"]) == 10
    # Authenticate, me and its organizations, the organization, and one for each of its nine lists and balances.
    assert with_one["extensions"]["cost"]["calls"] == with_ten["extensions"]["cost"]["calls"] == 13


async def test_an_operation_that_may_cost_too_much_is_refused(ada: Asker) -> None:
    fields = " ".join(f"a{i}: entries(first: 100) {{ nodes {{ account }} }}" for i in range(25))
    answer = await ada.answer(f"query($id: ID!) {{ organization(id: $id) {{ {fields} }} }}", id="org_x")
    assert answer["errors"][0]["extensions"]["code"] == "OPERATION_TOO_COSTLY"
