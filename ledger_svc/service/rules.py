"""An organization's rules: read and change them."""

from __future__ import annotations

import zoneinfo
from functools import cache
from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.price_book import PriceBook
from ledger_svc.store import rules
from mandate.ledger.v1 import rules_pb2 as pb
from mandate.ledger.v1 import rules_pb2_grpc as rpc
from mesh import caller
from mesh.db import Database
from mesh.errors import invalid
from mesh.idempotency import check_request_id

FIELDS = ("time_zone", "uncertain_holds", "default_price")
UNCERTAIN = {
    pb.UNCERTAIN_RULE_LIST: "list",
    pb.UNCERTAIN_RULE_RELEASE: "release",
    pb.UNCERTAIN_RULE_POST: "post",
}
UNCERTAIN_NUMBERS = {name: number for number, name in UNCERTAIN.items()}
NAME_MAX = 200
Context = grpc.aio.ServicerContext[Any, Any]


class RulesServicer(rpc.RulesServiceServicer):
    """Implements mandate.ledger.v1.RulesService."""

    def __init__(self, db: Database, prices: PriceBook) -> None:
        self._db = db
        self._prices = prices

    async def GetRules(self, request: pb.GetRulesRequest, context: Context) -> pb.Rules:
        return await self._rules(request.organization_id)

    async def UpdateRules(self, request: pb.UpdateRulesRequest, context: Context) -> pb.Rules:
        key, wanted = check_request_id(request), request.rules
        named = set(request.update_mask.paths)
        if not named or named - set(FIELDS):
            raise invalid("update_mask", f"must name one or more of {', '.join(FIELDS)}")
        uncertain = UNCERTAIN.get(wanted.uncertain_holds)
        if "uncertain_holds" in named and uncertain is None:
            raise invalid("rules.uncertain_holds", "must be LIST, RELEASE or POST")
        if "time_zone" in named:
            await self._check_zone(wanted.time_zone)
        if "default_price" in named:
            self._check_price(wanted.default_price)
        values = (
            wanted.time_zone if "time_zone" in named else None,
            uncertain if "uncertain_holds" in named else None,
            wanted.default_price if "default_price" in named else None,
        )
        differs = await rules.change(self._db, wanted.organization_id, key, caller.current().actor, values)
        if differs:
            raise wire.differs(differs)
        return await self._rules(wanted.organization_id)

    async def _rules(self, organization_id: str) -> pb.Rules:
        row = await rules.get(self._db, organization_id)
        if row is None:
            return pb.Rules(organization_id=organization_id, time_zone="UTC", uncertain_holds=pb.UNCERTAIN_RULE_LIST)
        return pb.Rules(
            organization_id=organization_id,
            version=row["version"],
            time_zone=row["time_zone"],
            uncertain_holds=UNCERTAIN_NUMBERS[row["uncertain"]],
            default_price=row["default_price"],
            update_time=wire.stamp(row["recorded_at"]),
        )

    async def _check_zone(self, name: str) -> None:
        # Windows are reckoned by PostgreSQL and reports here: both must know the zone.
        if name not in _zones() or not await rules.knows_zone(self._db, name):
            raise invalid("rules.time_zone", "must be the IANA name of a time zone, such as Europe/Berlin")

    def _check_price(self, route: str) -> None:
        provider, _, model = route.partition("/")
        if route and (len(route) > NAME_MAX or self._prices.in_force(provider, model) is None):
            raise invalid("rules.default_price", "must be the provider/model of a price in force, or empty")


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
