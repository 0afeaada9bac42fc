"""The GraphQL schema: one module for each area, put together here."""

from __future__ import annotations

import inspect

import strawberry
from graphql import GraphQLSchema
from strawberry.schema.config import StrawberryConfig

from graphql_edge.schema.budgets import BudgetMutations
from graphql_edge.schema.credentials import CredentialMutations
from graphql_edge.schema.directory import DirectoryMutations, DirectoryQueries
from graphql_edge.schema.explanations import ExplanationQueries
from graphql_edge.schema.keys import KeyMutations
from graphql_edge.schema.organizations import OrganizationMutations, OrganizationQueries
from graphql_edge.schema.people import PeopleMutations, PeopleQueries
from graphql_edge.schema.policies import PolicyMutations
from graphql_edge.schema.prices import PriceQueries
from graphql_edge.schema.routes import RouteMutations
from graphql_edge.schema.rules import RulesMutations
from graphql_edge.schema.scalars import INT64, MICROS, Int64, Micros
from graphql_edge.schema.wallets import WalletMutations


@strawberry.type
class Query(PeopleQueries, OrganizationQueries, DirectoryQueries, PriceQueries, ExplanationQueries):
    """Everything that can be read."""


@strawberry.type
class Mutation(  # one class for each area
    PeopleMutations,
    OrganizationMutations,
    DirectoryMutations,
    KeyMutations,
    CredentialMutations,
    WalletMutations,
    BudgetMutations,
    PolicyMutations,
    RouteMutations,
    RulesMutations,
):
    """Everything that can be changed; what a service refuses is told in userErrors."""


def build() -> GraphQLSchema:
    """Build the schema, described by the docstrings of what it is made of."""
    config = StrawberryConfig(scalar_map={Micros: MICROS, Int64: INT64})
    built = strawberry.Schema(Query, Mutation, config=config)
    schema = built._schema  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # Strawberry has no public name for it
    for kind in schema.type_map.values():
        definition = kind.extensions.get("strawberry-definition")
        origin = getattr(definition, "origin", None) or getattr(definition, "wrapped_cls", None)
        if origin is not None and not kind.description:
            kind.description = inspect.getdoc(origin)
    return schema
