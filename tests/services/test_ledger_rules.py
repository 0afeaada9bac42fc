from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mandate.ledger.v1 import rules_pb2 as pb
from mandate.ledger.v1 import rules_pb2_grpc as rpc
from mesh import caller
from mesh.client import call
from mesh.errors import AlreadyExists, InvalidArgument, PermissionDenied
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger


@asynccontextmanager
async def desk(ledger: RunningLedger, issuer: TestIssuer, role: str = "owner") -> AsyncGenerator[tuple[str, Any]]:
    organization = (await ledger.tenant(0))[0]
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        with caller.acting(issuer.person(**{organization: role})):
            yield organization, rpc.RulesServiceStub(channel)


def update(organization: str, request_id: str = "u1", mask: list[str] | None = None, **values: Any) -> Any:
    request = pb.UpdateRulesRequest(rules=pb.Rules(organization_id=organization, **values), request_id=request_id)
    request.update_mask.paths.extend(list(values) if mask is None else mask)
    return request


async def test_rules_begin_with_defaults(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, "viewer") as (organization, stub):
        found = await call(stub.GetRules, pb.GetRulesRequest(organization_id=organization))
    assert found == pb.Rules(organization_id=organization, time_zone="UTC", uncertain_holds=pb.UNCERTAIN_RULE_LIST)


async def test_each_change_is_a_version_that_leaves_the_rest_alone(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer) as (organization, stub):
        await call(stub.UpdateRules, update(organization, "u1", time_zone="Europe/Berlin"))
        await call(stub.UpdateRules, update(organization, "u2", uncertain_holds=pb.UNCERTAIN_RULE_POST))
        await call(stub.UpdateRules, update(organization, "u3", default_price="mock/mock-model"))
        found = await call(stub.GetRules, pb.GetRulesRequest(organization_id=organization))
        assert (found.version, found.time_zone, found.uncertain_holds, found.default_price) == (
            3, "Europe/Berlin", pb.UNCERTAIN_RULE_POST, "mock/mock-model",
        )  # fmt: skip
        emptied = await call(stub.UpdateRules, update(organization, "u4", default_price="", mask=["default_price"]))
        assert (emptied.version, emptied.default_price, emptied.time_zone) == (4, "", "Europe/Berlin")
    lines = await ledger.database.rows("SELECT line FROM audit WHERE organization_id = $1 ORDER BY seq", organization)
    changes = [json.loads(row["line"]) for row in lines if "rules.changed" in row["line"]]
    assert [change["detail"]["version"] for change in changes] == [1, 2, 3, 4]
    assert changes[2]["detail"] == {
        "default_price": "mock/mock-model", "time_zone": "Europe/Berlin", "uncertain_holds": "post", "version": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"time_zone": "Asia/Tokyo"}, "time_zone"),
        ({"time_zone": "Europe/Berlin", "uncertain_holds": pb.UNCERTAIN_RULE_LIST}, "uncertain_holds"),
        ({"time_zone": "Europe/Berlin", "default_price": ""}, "default_price"),
        ({"uncertain_holds": pb.UNCERTAIN_RULE_LIST}, "time_zone"),
    ],
)
async def test_a_repeat_changes_nothing_and_another_change_under_its_key_is_refused(
    ledger: RunningLedger, issuer: TestIssuer, changes: dict[str, Any], field: str
) -> None:
    async with desk(ledger, issuer) as (organization, stub):
        first = await call(stub.UpdateRules, update(organization, time_zone="Europe/Berlin"))
        assert await call(stub.UpdateRules, update(organization, time_zone="Europe/Berlin")) == first
        with pytest.raises(AlreadyExists) as refused:
            await call(stub.UpdateRules, update(organization, **changes))
    assert refused.value.details["field"] == field


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"time_zone": "Europe/Atlantis"}, "rules.time_zone"),
        ({"time_zone": ""}, "rules.time_zone"),
        ({"time_zone": "EST5EDT4,M3.2.0,M11.1.0"}, "rules.time_zone"),
        ({"time_zone": "../../etc/passwd"}, "rules.time_zone"),
        ({"time_zone": "A\x00B"}, "rules.time_zone"),
        ({"uncertain_holds": pb.UNCERTAIN_RULE_UNSPECIFIED}, "rules.uncertain_holds"),
        ({"uncertain_holds": 9}, "rules.uncertain_holds"),
        ({"default_price": "mock/none"}, "rules.default_price"),
        ({"default_price": "mock"}, "rules.default_price"),
        ({"time_zone": "UTC", "mask": []}, "update_mask"),
        ({"time_zone": "UTC", "mask": ["time_zone", "version"]}, "update_mask"),
        ({"time_zone": "UTC", "request_id": "a b"}, "request_id"),
    ],
)
async def test_a_bad_field_of_the_rules_is_named(
    ledger: RunningLedger, issuer: TestIssuer, values: dict[str, Any], field: str
) -> None:
    async with desk(ledger, issuer) as (organization, stub):
        with pytest.raises(InvalidArgument) as refused:
            await call(stub.UpdateRules, update(organization, **values))
    assert refused.value.details["field"] == field


async def test_rules_are_changed_by_those_who_set_budgets(ledger: RunningLedger, issuer: TestIssuer) -> None:
    async with desk(ledger, issuer, "viewer") as (organization, stub):
        with pytest.raises(PermissionDenied):
            await call(stub.UpdateRules, update(organization, time_zone="UTC"))
