from __future__ import annotations

import hashlib
import json

import pytest

from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import caller
from mesh.client import call
from mesh.errors import InvalidArgument
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, tenant


async def busy(ledger: RunningLedger) -> Tenant:
    """Return a tenant to whom every kind of thing has happened once."""
    spender = await tenant(ledger, 20 * TOKEN_MICROS)
    await spender.budget(15 * TOKEN_MICROS, auto_disable=True)
    for key in ("settled", "voided", "uncertain"):
        await spender.place(key, 3)
    await spender.settle("settled", 2)
    await spender.void("voided")
    await spender.lapse()
    again = await spender.again()
    await again.place('quote " and \\ and é', 12, 12)
    return again


async def export(ledger: RunningLedger, issuer: TestIssuer, spender: Tenant, page_size: int = 3) -> list[str]:
    lines: list[str] = []
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        stub = rpc.AuditServiceStub(channel)
        with caller.acting(issuer.person(**{spender.organization: "viewer"})):
            while True:
                request = pb.ExportAuditRequest(
                    organization_id=spender.organization, after_seq=len(lines), page_size=page_size
                )
                page = await call(stub.ExportAudit, request)
                lines += page.lines
                if not page.more:
                    return lines


def broken_at(organization: str, lines: list[str]) -> int | None:
    """Return the index of the first line that does not follow from the one before it."""
    head = hashlib.sha256(organization.encode()).digest()
    for index, sealed in enumerate(lines):
        digest, _, line = sealed.partition(" ")
        head = hashlib.sha256(head + line.encode()).digest()
        if head.hex() != digest:
            return index
    return None


async def test_the_exported_chain_can_be_computed_again(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender = await busy(ledger)
    lines = await export(ledger, issuer, spender)
    assert broken_at(spender.organization, lines) is None
    facts = [json.loads(line.partition(" ")[2]) for line in lines]
    assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
    assert {fact["organization"] for fact in facts} == {spender.organization}
    assert [fact["action"] for fact in facts] == [
        "credits.purchase",
        "budget.created",
        "charge.settled",
        "hold.voided",
        "hold.uncertain",
        "budget.disabled",
        "hold.refused",
    ]
    assert facts[-1]["subject"] == 'quote " and \\ and é'
    assert lines == await export(ledger, issuer, spender, 1_000)


async def test_a_flipped_byte_breaks_the_chain_at_its_line(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender = await busy(ledger)
    lines = await export(ledger, issuer, spender)
    for index, line in enumerate(lines):
        changed = line[:80] + chr(ord(line[80]) ^ 1) + line[81:]
        assert broken_at(spender.organization, [*lines[:index], changed, *lines[index + 1 :]]) == index


async def test_a_line_that_is_left_out_or_moved_breaks_the_chain(ledger: RunningLedger, issuer: TestIssuer) -> None:
    spender = await busy(ledger)
    lines = await export(ledger, issuer, spender)
    assert broken_at(spender.organization, [*lines[:2], *lines[3:]]) == 2
    assert broken_at(spender.organization, [lines[0], lines[2], lines[1], *lines[3:]]) == 1


@pytest.mark.parametrize(("field", "value"), [("page_size", 1_001), ("page_size", -1), ("after_seq", -1)])
async def test_an_export_names_the_field_that_is_wrong(
    ledger: RunningLedger, issuer: TestIssuer, field: str, value: int
) -> None:
    spender = await tenant(ledger, 0)
    request = pb.ExportAuditRequest(organization_id=spender.organization)
    setattr(request, field, value)
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        with caller.acting(issuer.person(**{spender.organization: "viewer"})), pytest.raises(InvalidArgument) as wrong:
            await call(rpc.AuditServiceStub(channel).ExportAudit, request)
    assert wrong.value.details["field"] == field
