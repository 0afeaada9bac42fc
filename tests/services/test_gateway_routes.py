from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway_svc.routing import Alias, Limits, Target
from mandate.gateway.v1 import routes_pb2 as pb
from mesh import ids
from mesh.caller import acting
from mesh.client import call
from mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def target(model: str = "mock-model", provider: str = "mock", **more: int) -> pb.RouteTarget:
    return pb.RouteTarget(provider=provider, model=model, **more)


def unpriced(model: str = "llama-4", provider: str = "openai", weight: int = 1) -> pb.RouteTarget:
    return target(model, provider, weight=weight, context_tokens=32_000, output_tokens_max=4_000)


async def created(
    gateway: RunningGateway, tenant: Tenant, alias: str, *targets: pb.RouteTarget, request_id: str = ""
) -> pb.Route:
    request = pb.CreateRouteRequest(
        organization_id=tenant.family.organization_id,
        alias=alias,
        targets=targets or [target()],
        request_id=request_id or fresh(),
    )
    with acting(tenant.owner):
        return await call(gateway.routes.CreateRoute, request)


async def updated(gateway: RunningGateway, tenant: Tenant, route: pb.Route, *paths: str) -> pb.Route:
    request = pb.UpdateRouteRequest(route=route, request_id=fresh())
    request.update_mask.paths.extend(paths)
    with acting(tenant.owner):
        return await call(gateway.routes.UpdateRoute, request)


async def removed(gateway: RunningGateway, tenant: Tenant, route_id: str) -> pb.Route:
    with acting(tenant.owner):
        request = pb.RemoveRouteRequest(route_id=route_id, request_id=fresh())
        return await call(gateway.routes.RemoveRoute, request)


async def listed(gateway: RunningGateway, tenant: Tenant, **page: Any) -> pb.ListRoutesResponse:
    with acting(tenant.owner):
        request = pb.ListRoutesRequest(organization_id=tenant.family.organization_id, **page)
        return await call(gateway.routes.ListRoutes, request)


async def test_a_route_is_kept_as_it_was_told_with_defaults_filled_in(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    told = [target(weight=0, tier=7), target("mock-flat"), unpriced(weight=1_000)]
    made = await created(gateway, tenant, "fast", *told)
    told[1].weight = 1
    assert (made.organization_id, made.alias, list(made.targets)) == (tenant.family.organization_id, "fast", told)
    assert not made.HasField("remove_time")
    assert list((await listed(gateway, tenant)).routes) == [made]


async def test_an_update_changes_what_its_mask_names(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await created(gateway, tenant, "fast")
    other = pb.Route(id=made.id, alias="faster", targets=[target("mock-flat"), target()])
    renamed = await updated(gateway, tenant, other, "alias")
    assert (renamed.alias, renamed.targets) == ("faster", made.targets)
    assert renamed.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    rerouted = await updated(gateway, tenant, pb.Route(id=made.id, targets=other.targets), "targets")
    assert (rerouted.alias, [each.model for each in rerouted.targets]) == ("faster", ["mock-flat", "mock-model"])
    assert (await updated(gateway, tenant, other, "alias", "targets")).alias == "faster"  # its own name is not taken


@pytest.mark.parametrize("paths", [(), ("alias", "id"), ("route.alias",), ("*",)])
async def test_an_update_names_fields_that_can_change(gateway: RunningGateway, paths: tuple[str, ...]) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await created(gateway, tenant, "fast")
    with pytest.raises(InvalidArgument) as raised:
        await updated(gateway, tenant, made, *paths)
    assert raised.value.details["field"] == "update_mask"


async def test_a_removed_route_stays_listed_and_frees_its_name(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await created(gateway, tenant, "fast")
    ended = await removed(gateway, tenant, made.id)
    assert ended.HasField("remove_time")
    assert await removed(gateway, tenant, made.id) == ended
    again = await created(gateway, tenant, "fast", target("mock-flat"))
    assert list((await listed(gateway, tenant)).routes) == [ended, again]
    with pytest.raises(FailedPrecondition) as raised:
        await updated(gateway, tenant, pb.Route(id=made.id, alias="slow"), "alias")
    assert raised.value.reason == "ROUTE_REMOVED"


async def test_a_name_stands_for_one_route_of_an_organization_at_a_time(gateway: RunningGateway) -> None:
    tenant, neighbour = await gateway.mesh.tenant(0), await gateway.mesh.tenant(0)
    outcomes = await asyncio.gather(
        *(created(gateway, tenant, "fast") for _ in range(6)),
        created(gateway, neighbour, "fast"),
        return_exceptions=True,
    )
    assert [isinstance(outcome, pb.Route) for outcome in outcomes].count(True) == 2
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, AlreadyExists)} == {"ALIAS_TAKEN"}
    other = await created(gateway, tenant, "slow")
    with pytest.raises(AlreadyExists) as raised:
        await updated(gateway, tenant, pb.Route(id=other.id, alias="fast"), "alias")
    assert raised.value.details["field"] == "alias"


@pytest.mark.parametrize("name", ["mock-model", "mock-flat", "openai/gpt-6-sol", "mock/mock-model"])
async def test_an_alias_hides_no_model_that_has_a_price(gateway: RunningGateway, name: str) -> None:
    tenant = await gateway.mesh.tenant(0)
    with pytest.raises(AlreadyExists) as raised:
        await created(gateway, tenant, name)
    assert (raised.value.reason, raised.value.details["field"]) == ("ALIAS_NAMES_MODEL", "alias")


@pytest.mark.parametrize(
    ("alias", "targets", "field"),
    [
        ("", [target()], "alias"),
        ("a b", [target()], "alias"),
        ("fast*", [target()], "alias"),
        ("fast\n", [target()], "alias"),
        ("x" * 200, [target()], "alias"),
        ("fast", [unpriced(f"m-{n}") for n in range(9)], "targets"),
        ("fast", [target(), target(tier=1)], "targets"),
        ("fast", [target(weight=-1)], "targets.weight"),
        ("fast", [target(weight=1_001)], "targets.weight"),
        ("fast", [target(tier=-1)], "targets.tier"),
        ("fast", [target(tier=8)], "targets.tier"),
        ("fast", [target("llama-4", "openai")], "targets.model"),
        ("fast", [unpriced("a b")], "targets.model"),
        ("fast", [unpriced(provider="anthropic")], "targets.model"),
        ("fast", [unpriced(provider="a\x00b")], "targets.model"),
        ("fast", [target("mock-model", "openai")], "targets.model"),
        ("fast", [unpriced("mock-model", "mock")], "targets.context_tokens"),
        ("fast", [target("llama-4", "openai", context_tokens=9)], "targets.output_tokens_max"),
        ("fast", [target("llama-4", "openai", output_tokens_max=9)], "targets.context_tokens"),
        ("fast", [target("llama-4", "openai", context_tokens=9, output_tokens_max=10)], "targets.output_tokens_max"),
        ("fast", [target("llama-4", "openai", context_tokens=10**9, output_tokens_max=1)], "targets.context_tokens"),
    ],
)
async def test_a_route_that_makes_no_sense_is_refused(
    gateway: RunningGateway, alias: str, targets: list[pb.RouteTarget], field: str
) -> None:
    tenant = await gateway.mesh.tenant(0)
    with pytest.raises(InvalidArgument) as raised:
        await created(gateway, tenant, alias, *targets)
    assert raised.value.details["field"] == field


async def test_a_route_needs_a_target(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await created(gateway, tenant, "fast")
    with pytest.raises(InvalidArgument) as raised:
        await updated(gateway, tenant, pb.Route(id=made.id), "targets")
    assert raised.value.details["field"] == "targets"


async def test_a_route_is_made_once_for_each_request_id(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    first = await created(gateway, tenant, "fast", request_id="r1")
    assert await created(gateway, tenant, "fast", request_id="r1") == first
    with pytest.raises(AlreadyExists) as raised:
        await created(gateway, tenant, "fast", target("mock-flat"), request_id="r1")
    assert (raised.value.reason, raised.value.details["field"]) == ("REQUEST_ID_REUSED", "targets")


async def test_an_organization_has_so_many_routes_and_no_more(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    outcomes = await asyncio.gather(
        *(created(gateway, tenant, f"fast-{number}") for number in range(104)), return_exceptions=True
    )
    assert sum(isinstance(outcome, pb.Route) for outcome in outcomes) == 100
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, FailedPrecondition)} == {"TOO_MANY_ROUTES"}


async def test_a_list_of_routes_has_pages(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = [await created(gateway, tenant, f"fast-{n}", target(), target("mock-flat")) for n in (1, 2, 3)]
    first = await listed(gateway, tenant, page_size=2)
    second = await listed(gateway, tenant, page_size=2, page_token=first.next_page_token)
    assert [*first.routes, *second.routes] == made
    assert not second.next_page_token


async def test_a_route_made_at_one_gateway_is_known_to_another_within_a_second(
    gateway: RunningGateway, mesh: Mesh, tmp_path: Path
) -> None:
    tenant = await mesh.tenant(0)
    organization_id = tenant.family.organization_id
    async with gateway_running(mesh, tmp_path) as second:
        assert not await second.built.parts.aliases.of(organization_id)
        made = await created(gateway, tenant, "fast", target(), unpriced(weight=5))
        await asyncio.sleep(1)
        known = await second.built.parts.aliases.of(organization_id)
    targets = (Target("mock", "mock-model"), Target("openai", "llama-4", 5, 0, Limits(32_000, 4_000)))
    assert known == {"fast": Alias(made.id, "fast", targets)}


async def test_another_organizations_routes_do_not_exist(gateway: RunningGateway) -> None:
    tenant, stranger = await gateway.mesh.tenant(0), await gateway.mesh.tenant(0)
    made = await created(gateway, tenant, "fast")
    organization_id, nobody = tenant.family.organization_id, ids.new(ids.Kind.ROUTE)
    calls: list[tuple[Any, Any]] = [
        (gateway.routes.ListRoutes, pb.ListRoutesRequest(organization_id=organization_id)),
        (gateway.routes.CreateRoute, pb.CreateRouteRequest(organization_id=organization_id, request_id=fresh())),
        *(
            each
            for route_id in (made.id, nobody)
            for each in (
                (gateway.routes.UpdateRoute, pb.UpdateRouteRequest(route=pb.Route(id=route_id), request_id=fresh())),
                (gateway.routes.RemoveRoute, pb.RemoveRouteRequest(route_id=route_id, request_id=fresh())),
            )
        ),
    ]
    with acting(stranger.owner):
        for method, request in calls:
            with pytest.raises(NotFound):
                await call(method, request)
