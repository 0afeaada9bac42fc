"""Organizations: the tenant, from which everything that it owns is reached."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.schema import audit, records, statements
from graphql_edge.schema.budgets import Budget, budgets
from graphql_edge.schema.credentials import ProviderCredential, provider_credentials
from graphql_edge.schema.directory import AgentGroup, AgentSummary, Workspace, agent_group_of, workspace_of
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, KeyRequired, costly, field, key_of, mutation
from graphql_edge.schema.grants import CreditGrant, credit_grants
from graphql_edge.schema.keys import ApiKey, api_keys
from graphql_edge.schema.pages import SIZE_DEFAULT, Connection, connection, size_of
from graphql_edge.schema.policies import Policy, policies
from graphql_edge.schema.prices import Bill, bill
from graphql_edge.schema.reports import UsageReports
from graphql_edge.schema.routes import Route, routes
from graphql_edge.schema.rules import LedgerRules, rules
from graphql_edge.schema.scalars import Int64, time_of
from graphql_edge.schema.wallets import Transfer, Wallet, wallet_of
from mandate.identity.v1 import directory_pb2 as pb
from mandate.ledger.v1 import wallets_pb2


@strawberry.type
class Organization:
    """A tenant: it owns a wallet and everything below it."""

    id: strawberry.ID
    name: str
    create_time: datetime

    @field
    async def wallet(self, info: Info) -> Wallet | None:
        """Return the present balances."""
        request = wallets_pb2.GetWalletRequest(organization_id=self.id)
        return wallet_of(await info.context.call(info.context.stubs.wallets.GetWallet, request))

    @field
    async def workspaces(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[Workspace] | None:
        """Page through workspaces, oldest first."""
        request = pb.ListWorkspacesRequest(organization_id=self.id, page_size=size_of(first), page_token=after or "")
        answer = await info.context.call(info.context.stubs.directory.ListWorkspaces, request)
        return connection(workspace_of, answer.workspaces, answer.next_page_token)

    @field
    async def agent_groups(
        self, info: Info, workspace_id: strawberry.ID | None = None, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[AgentGroup] | None:
        """Page through the groups of the organization or of one workspace, oldest first."""
        parent_id = workspace_id or self.id
        request = pb.ListAgentGroupsRequest(parent_id=parent_id, page_size=size_of(first), page_token=after or "")
        answer = await info.context.call(info.context.stubs.directory.ListAgentGroups, request)
        return connection(agent_group_of, answer.agent_groups, answer.next_page_token)

    @field
    async def agents(
        self, info: Info, below: strawberry.ID | None = None, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[AgentSummary] | None:
        """Page through the agents of the organization, or `below` one workspace or group, oldest first."""
        request = pb.ListAgentsRequest(parent_id=below or self.id, page_size=size_of(first), page_token=after or "")
        answer = await info.context.call(info.context.stubs.directory.ListAgents, request)
        return connection(AgentSummary.of, answer.agents, answer.next_page_token)

    @field
    async def api_keys(
        self, info: Info, agent_id: strawberry.ID, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[ApiKey] | None:
        """Page through one agent's keys, newest first."""
        return await api_keys(info.context, agent_id, first, after)

    @field
    async def provider_credentials(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[ProviderCredential] | None:
        """Page through the keys at model providers, newest first, without their secrets."""
        return await provider_credentials(info.context, self.id, first, after)

    @field
    async def budgets(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[Budget] | None:
        """Page through budgets with their present windows, oldest first."""
        return await budgets(info.context, self.id, first, after)

    @field
    async def credit_grants(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[CreditGrant] | None:
        """Page through credit grants with what is left of them, oldest first."""
        return await credit_grants(info.context, self.id, first, after)

    @field
    async def policies(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[Policy] | None:
        """Page through policies, oldest first."""
        return await policies(info.context, self.id, first, after)

    @field
    async def routes(self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None) -> Connection[Route] | None:
        """Page through the organization's own names for models, oldest first."""
        return await routes(info.context, self.id, first, after)

    @field
    async def transfers(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[Transfer] | None:
        """Page through transfers, newest first."""
        return await records.transfers(info.context, self.id, first, after)

    @field
    async def entries(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[records.Entry] | None:
        """Page through the lines that transfers make on accounts, newest first; a transfer's lines stay together."""
        return await records.entries(info.context, self.id, first, after)

    @field
    async def balance(
        self, info: Info, account: str, time: datetime | None = None, seq: Int64 | None = None
    ) -> statements.Balance | None:
        """Return what a wallet, budget or other account had settled as of a `time` or transfer; now when neither."""
        return await statements.balance(info.context, self.id, account, time, seq)

    @field
    async def statement(
        self,
        info: Info,
        account: str,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        first: int = SIZE_DEFAULT,
        after: str | None = None,
    ) -> statements.Statement | None:
        """Page through an account's lines, oldest first; a page may be short although the list goes on."""
        period = statements.Period(start_time, end_time)
        return await statements.statement(info.context, self.id, account, period, first, after)

    @costly(statements.CHECK_POINTS)
    async def books_check(self, info: Info) -> statements.BooksCheck | None:
        """Recompute every balance, sum and hash; costs 3,000 points, so that a document can ask for one only."""
        return await statements.books_check(info.context, self.id)

    @field
    async def usage(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[records.Usage] | None:
        """Page through completions, newest first."""
        return await records.usage(info.context, self.id, first, after)

    @field
    async def bill(self, info: Info, request_id: str) -> Bill | None:
        """Return how the charge of one completion came about, line by line."""
        return await bill(info.context, self.id, request_id)

    @field
    def reports(self, below: strawberry.ID | None = None) -> UsageReports:
        """Report on the organization, or on what is `below` one workspace, group or agent."""
        return UsageReports(organization_id=self.id, node_id=below or self.id)

    @field
    async def rules(self, info: Info) -> LedgerRules | None:
        """Return how the books are kept."""
        return await rules(info.context, self.id)

    @field
    async def uncertain_holds(
        self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None
    ) -> Connection[records.UncertainHold] | None:
        """Page through the holds that somebody must decide, oldest first."""
        return await records.uncertain_holds(info.context, self.id, first, after)

    @field
    async def audit_export(
        self, info: Info, first: int = audit.LINES_DEFAULT, after_seq: Int64 | None = None
    ) -> audit.AuditExport | None:
        """Export the audit chain as JSON Lines, oldest first, 1 to 1,000 entries at once."""
        return await audit.export(info.context, self.id, first, after_seq or 0)

    @field
    async def audit_entries(
        self,
        info: Info,
        where: audit.AuditFilter | None = None,
        first: int = SIZE_DEFAULT,
        after: str | None = None,
    ) -> Connection[audit.AuditEntry] | None:
        """Page through the audit chain, newest first; a page may be empty although the list goes on."""
        return await audit.entries(info.context, self.id, where or audit.AuditFilter(), first, after)

    @field
    async def audit_head(self, info: Info) -> audit.AuditHead | None:
        """Return the newest signed head of the audit chain."""
        return await audit.head(info.context, self.id)

    @field
    async def audit_proof(self, info: Info, seq: Int64) -> audit.AuditProof | None:
        """Prove that the newest signed head holds one entry."""
        return await audit.proof(info.context, self.id, seq)


def organization_of(message: pb.Organization) -> Organization:
    """Read an organization from the contract's message."""
    return Organization(id=strawberry.ID(message.id), name=message.name, create_time=time_of(message.create_time))


@strawberry.input
class CreateOrganizationInput(KeyRequired):
    """A new organization; whoever creates it owns it."""

    name: str


@strawberry.input
class UpdateOrganizationInput(Keyed):
    """New values; absent ones stay."""

    id: strawberry.ID
    name: str | None = None


@strawberry.type
class OrganizationPayload(Payload):
    """The organization."""

    organization: Organization | None = None


@strawberry.type
class OrganizationQueries:
    """One organization."""

    @field
    async def organization(self, info: Info, id: strawberry.ID) -> Organization | None:
        """Return one organization."""
        request = pb.GetOrganizationRequest(organization_id=id)
        return organization_of(await info.context.call(info.context.stubs.directory.GetOrganization, request))


@strawberry.type
class OrganizationMutations:
    """Create and rename."""

    @mutation
    async def create_organization(self, info: Info, input: CreateOrganizationInput) -> OrganizationPayload | None:
        """Create an organization, owned by the caller, with an empty wallet."""
        request = pb.CreateOrganizationRequest(name=input.name, request_id=key_of(input))
        made = await info.context.call(info.context.stubs.directory.CreateOrganization, request)
        await info.context.authenticate()  # the mesh token of before knows nothing of the new organization
        return OrganizationPayload(organization=organization_of(made))

    @mutation
    async def update_organization(self, info: Info, input: UpdateOrganizationInput) -> OrganizationPayload | None:
        """Rename an organization."""
        request = pb.UpdateOrganizationRequest(
            organization=pb.Organization(id=input.id, name=input.name or ""), request_id=key_of(input)
        )
        if input.name is not None:
            request.update_mask.paths.append("name")
        made = await info.context.call(info.context.stubs.directory.UpdateOrganization, request)
        return OrganizationPayload(organization=organization_of(made))
