"""RouteService: the names of their own that organizations give to models."""

from __future__ import annotations

from collections.abc import Collection

import grpc

from gateway_svc import wire
from gateway_svc.route_terms import Priced, checked_alias, checked_targets
from gateway_svc.routing import Alias
from gateway_svc.store import routes as store
from mandate.gateway.v1 import routes_pb2 as pb
from mandate.gateway.v1 import routes_pb2_grpc as rpc
from mandate.ledger.v1 import prices_pb2, prices_pb2_grpc
from mesh import client, ids, paging
from mesh.audit import Fact
from mesh.chain import Context
from mesh.db import Connection, Database
from mesh.errors import AlreadyExists, FailedPrecondition, NotFound, invalid
from mesh.idempotency import once

PEPPER = b"routes hold no secrets"
FIELDS = {"alias", "targets"}


class Routes(rpc.RouteServiceServicer):
    """Keeps routes; which models have a price is asked of the ledger, before any lock is taken."""

    def __init__(self, db: Database, ledger: grpc.aio.Channel) -> None:
        self._db = db
        self._prices = prices_pb2_grpc.PriceServiceStub(ledger)

    async def CreateRoute(self, request: pb.CreateRouteRequest, context: Context) -> pb.Route:
        if ids.kind_of(request.organization_id) is not ids.Kind.ORGANIZATION:
            raise invalid("organization_id", "must be an organization")
        priced = await self._priced()

        async def make(tx: Connection) -> pb.Route:
            targets = checked_targets(wire.targets_of(request.targets), priced)
            alias = Alias(ids.new(ids.Kind.ROUTE), checked_alias(request.alias, priced), targets)
            await store.lock(tx, request.organization_id)
            await _check_free(tx, request.organization_id, alias)
            if await store.count(tx, request.organization_id) >= store.ROUTES_MAX:
                raise FailedPrecondition("TOO_MANY_ROUTES", f"an organization has at most {store.ROUTES_MAX} aliases")
            await store.add(tx, alias, request.organization_id)
            return await _found(tx, alias.route_id)

        return (await once(self._db, request, pb.Route, make, audited=_created, pepper=PEPPER)).answer

    async def UpdateRoute(self, request: pb.UpdateRouteRequest, context: Context) -> pb.Route:
        named, priced = set(request.update_mask.paths), await self._priced()

        async def make(tx: Connection) -> pb.Route:
            before = await _in_force(tx, request.route.id)
            wanted = _changed(before, request.route, named, priced)
            await _check_free(tx, before.organization_id, wanted)
            await store.change(tx, wanted, before.organization_id)
            return await _found(tx, before.id)

        return (await once(self._db, request, pb.Route, make, audited=_updated, pepper=PEPPER)).answer

    async def RemoveRoute(self, request: pb.RemoveRouteRequest, context: Context) -> pb.Route:
        async def make(tx: Connection) -> pb.Route:
            before = await _locked(tx, request.route_id)
            await store.remove(tx, before.id, before.organization_id)
            return await _found(tx, before.id)

        return (await once(self._db, request, pb.Route, make, audited=_removed, pepper=PEPPER)).answer

    async def ListRoutes(self, request: pb.ListRoutesRequest, context: Context) -> pb.ListRoutesResponse:
        page = paging.page_of(request.page_size, request.page_token)
        found = await store.page(self._db, request.organization_id, page.after or "", page.size + 1)
        token = paging.next_token(page, [stored.id for stored in found])
        routes = [wire.route_message(stored) for stored in found[: page.size]]
        return pb.ListRoutesResponse(routes=routes, next_page_token=token)

    async def _priced(self) -> Priced:
        answer = await client.call(self._prices.ListPrices, prices_pb2.ListPricesRequest())
        return {(price.provider, price.model) for price in answer.prices}


def _changed(before: store.StoredRoute, route: pb.Route, named: Collection[str], priced: Priced) -> Alias:
    """Return what an update makes of a route; InvalidArgument for a mask that names anything but its fields."""
    if not named or not FIELDS.issuperset(named):
        raise invalid("update_mask", f"must name one or more of {', '.join(sorted(FIELDS))}")
    name = checked_alias(route.alias, priced) if "alias" in named else before.alias
    targets = checked_targets(wire.targets_of(route.targets), priced) if "targets" in named else before.targets
    return Alias(before.id, name, targets)


async def _locked(tx: Connection, route_id: str) -> store.StoredRoute:
    found = await store.lock_of(tx, route_id)
    if found is None:
        raise NotFound("NOT_FOUND", f"no route_id {route_id!r}", field="route_id")
    return found


async def _in_force(tx: Connection, route_id: str) -> store.StoredRoute:
    found = await _locked(tx, route_id)
    if found.removed_at is not None:
        raise FailedPrecondition("ROUTE_REMOVED", f"{route_id} was removed", field="route_id")
    return found


async def _check_free(tx: Connection, organization_id: str, alias: Alias) -> None:
    if await store.holder(tx, organization_id, alias.name) not in {None, alias.route_id}:
        raise AlreadyExists("ALIAS_TAKEN", f"another route is called {alias.name}", field="alias")


async def _found(tx: Connection, route_id: str) -> pb.Route:
    found = await store.find(tx, route_id)
    if found is None:
        raise LookupError("a route that was just written is not there")
    return wire.route_message(found)


def _created(made: pb.Route) -> Fact:
    return Fact(made.organization_id, "route.created", made.id, {"targets": _told(made)})


def _updated(made: pb.Route) -> Fact:
    return Fact(made.organization_id, "route.updated", made.id, {"targets": _told(made)})


def _removed(made: pb.Route) -> Fact:
    return Fact(made.organization_id, "route.removed", made.id, {})


def _told(made: pb.Route) -> list[str]:
    return [f"tier {each.tier} weight {each.weight} {each.provider}/{each.model}" for each in made.targets]
