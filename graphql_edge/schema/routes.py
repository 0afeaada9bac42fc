"""Routes: an organization's own names for models, what each stands for, and what is asked where that fails."""
# ruff: noqa: A002  # a mutation's one argument is called input

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import Payload
from graphql_edge.schema.fields import Info, Keyed, key_of, mutation
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import optional_time, time_of
from mandate.gateway.v1 import routes_pb2 as pb


@strawberry.type
class RouteTarget:
    """One model that an alias may stand for. Targets of the lowest tier share the requests by weight."""

    provider: str
    model: str
    weight: int
    tier: int
    context_tokens: int | None
    output_tokens_max: int | None


@strawberry.type
class Route:
    """A name that agents ask for as if it were a model's; the targets of later tiers are its fallbacks."""

    id: strawberry.ID
    organization_id: strawberry.ID
    alias: str
    targets: list[RouteTarget]
    create_time: datetime
    update_time: datetime
    remove_time: datetime | None


@strawberry.input
class RouteTargetInput:
    """A model with a price; or one without, at the organization's own address, then with both of its limits."""

    provider: str
    model: str
    weight: int = 1
    tier: int = 0
    context_tokens: int | None = None
    output_tokens_max: int | None = None


@strawberry.input
class CreateRouteInput(Keyed):
    """A name that no model with a price has, and the 1 to 8 models that it stands for."""

    organization_id: strawberry.ID
    alias: str
    targets: list[RouteTargetInput]


@strawberry.input
class UpdateRouteInput(Keyed):
    """New values; absent ones stay, and `targets` replaces all of them."""

    id: strawberry.ID
    alias: str | None = None
    targets: list[RouteTargetInput] | None = None


@strawberry.input
class RemoveRouteInput(Keyed):
    """The route to end."""

    id: strawberry.ID


@strawberry.type
class RoutePayload(Payload):
    """The route."""

    route: Route | None = None


def route_of(message: pb.Route) -> Route:
    """Read a route from the contract's message."""
    return Route(
        id=strawberry.ID(message.id),
        organization_id=strawberry.ID(message.organization_id),
        alias=message.alias,
        targets=[_target_of(target) for target in message.targets],
        create_time=time_of(message.create_time),
        update_time=time_of(message.update_time),
        remove_time=optional_time(message.remove_time),
    )


async def routes(operation: Operation, organization_id: str, first: int, after: str | None) -> Connection[Route]:
    """Read one page of an organization's routes."""
    request = pb.ListRoutesRequest(organization_id=organization_id, page_size=size_of(first), page_token=after or "")
    answer = await operation.call(operation.stubs.routes.ListRoutes, request)
    return connection(route_of, answer.routes, answer.next_page_token)


def _target_of(message: pb.RouteTarget) -> RouteTarget:
    return RouteTarget(
        provider=message.provider,
        model=message.model,
        weight=message.weight,
        tier=message.tier,
        context_tokens=message.context_tokens if message.HasField("context_tokens") else None,
        output_tokens_max=message.output_tokens_max if message.HasField("output_tokens_max") else None,
    )


def _targets(given: Iterable[RouteTargetInput]) -> list[pb.RouteTarget]:
    return [
        pb.RouteTarget(
            provider=target.provider,
            model=target.model,
            weight=target.weight,
            tier=target.tier,
            context_tokens=target.context_tokens,
            output_tokens_max=target.output_tokens_max,
        )
        for target in given
    ]


@strawberry.type
class RouteMutations:
    """Name models as the organization likes."""

    @mutation
    async def create_route(self, info: Info, input: CreateRouteInput) -> RoutePayload | None:
        """Add an alias; agents may ask for it within a second."""
        request = pb.CreateRouteRequest(
            organization_id=input.organization_id,
            alias=input.alias,
            targets=_targets(input.targets),
            request_id=key_of(input),
        )
        return RoutePayload(route=route_of(await info.context.call(info.context.stubs.routes.CreateRoute, request)))

    @mutation
    async def update_route(self, info: Info, input: UpdateRouteInput) -> RoutePayload | None:
        """Rename an alias, or have it stand for other models."""
        request = pb.UpdateRouteRequest(route=pb.Route(id=input.id), request_id=key_of(input))
        if input.alias is not None:
            request.route.alias = input.alias
            request.update_mask.paths.append("alias")
        if input.targets is not None:
            request.route.targets.extend(_targets(input.targets))
            request.update_mask.paths.append("targets")
        return RoutePayload(route=route_of(await info.context.call(info.context.stubs.routes.UpdateRoute, request)))

    @mutation
    async def remove_route(self, info: Info, input: RemoveRouteInput) -> RoutePayload | None:
        """End an alias; its name may be given anew."""
        request = pb.RemoveRouteRequest(route_id=input.id, request_id=key_of(input))
        return RoutePayload(route=route_of(await info.context.call(info.context.stubs.routes.RemoveRoute, request)))
