from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger_svc.store import audit as store
from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import caller, faults
from mesh.client import call
from mesh.errors import AlreadyExists, InvalidArgument, MeshError, NotFound, PermissionDenied
from mesh.testing import TestIssuer
from mesh.verify import Complete, verify
from tests.conftest import RunningLedger
from tests.services.audit_running import Auditor, auditing
from tests.services.ledger_running import TOKEN_MICROS, Tenant, tenant


@pytest.fixture
async def auditor(ledger: RunningLedger, issuer: TestIssuer, tmp_path: Path) -> AsyncIterator[Auditor]:
    async with auditing(ledger, issuer, tmp_path, await tenant(ledger, 0)) as found:
        yield found


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


def fact(organization: str, count: int, **changed: object) -> pb.AuditFact:
    made = pb.AuditFact(
        source_seq=count,
        organization_id=organization,
        actor="usr_1",
        action="agent.created",
        subject=f"agt_{count}",
        detail='{ "b": [1, "é\\n"], "a": true }',
    )
    made.time.FromJsonString("2026-01-02T03:04:05.678Z")
    for name, value in changed.items():
        if name == "time":
            made.time.FromJsonString(str(value))
        else:
            setattr(made, name, value)
    return made


async def append(ledger: RunningLedger, *facts: pb.AuditFact, source: str = "identity") -> list[pb.AppendedFact]:
    async with ledger.house.channel("ledger", ledger.address, as_service=source) as channel:
        answered = await call(rpc.AuditServiceStub(channel).AppendAudit, pb.AppendAuditRequest(facts=facts))
    return list(answered.facts)


def refusal(answer: pb.AppendedFact) -> MeshError:
    assert answer.seq == 0
    return faults.from_fault(answer.fault)


async def test_the_exported_chain_can_be_verified_by_a_stranger(
    ledger: RunningLedger, issuer: TestIssuer, tmp_path: Path
) -> None:
    spender = await busy(ledger)
    async with auditing(ledger, issuer, tmp_path, spender) as auditor:
        lines = await auditor.export()
        assert lines == await auditor.export(1_000)
    verdict = verify(lines)
    assert isinstance(verdict, Complete)
    assert (verdict.organization, verdict.seq) == (spender.organization, len(lines))
    entries = [json.loads(line)["entry"] for line in lines]
    assert {
        "credits.purchase",
        "budget.created",
        "charge.settled",
        "hold.voided",
        "hold.uncertain",
        "hold.refused",
    } <= {entry["action"] for entry in entries}
    assert 'quote " and \\ and é' in {entry["subject"] for entry in entries}


@pytest.mark.parametrize(("field", "value"), [("page_size", 1_001), ("page_size", -1), ("after_seq", -1)])
async def test_an_export_names_the_field_that_is_wrong(auditor: Auditor, field: str, value: int) -> None:
    request = pb.ExportAuditRequest(organization_id=auditor.organization)
    setattr(request, field, value)
    with caller.acting(auditor.viewer), pytest.raises(InvalidArgument) as wrong:
        await call(auditor.stub.ExportAudit, request)
    assert wrong.value.details["field"] == field


async def test_what_a_service_tells_is_in_the_chain_once_with_its_count(auditor: Auditor) -> None:
    ledger, organization = auditor.ledger, auditor.organization
    first = await append(ledger, fact(organization, 1), fact(organization, 2))
    assert [(answer.seq, answer.replayed) for answer in first] == [(1, False), (2, False)]
    again = await append(ledger, fact(organization, 2, detail='{"a":true,"b":[1,"é\\n"]}'), fact(organization, 3))
    assert [(answer.seq, answer.replayed) for answer in again] == [(2, True), (3, False)]
    other = await append(ledger, fact(organization, 1), source="vault")
    assert [(answer.seq, answer.replayed) for answer in other] == [(4, False)]
    lines = await auditor.export()
    detail = {
        "fact": {"a": True, "b": [1, "é\n"]},
        "source": "identity",
        "source_seq": 2,
        "source_time": "2026-01-02T03:04:05.678000Z",
    }
    assert json.loads(lines[1])["entry"]["detail"] == detail
    assert b'"detail":{"fact":{"a":true,"b":[1,"\xc3\xa9\\n"]},"source":"identity",' in lines[1]
    verdict = verify(lines)
    assert isinstance(verdict, Complete)
    assert (verdict.seq, verdict.gaps) == (4, ())


async def test_a_count_that_is_left_out_shows_as_a_gap(auditor: Auditor) -> None:
    await append(auditor.ledger, fact(auditor.organization, 1), fact(auditor.organization, 3))
    verdict = verify(await auditor.export())
    assert isinstance(verdict, Complete)
    assert verdict.gaps == ("identity 2 (before seq 2)",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor", "usr_2"),
        ("action", "agent.suspended"),
        ("subject", "agt_2"),
        ("detail", '{"a":true,"b":[2,"é\\n"]}'),
        ("time", "2026-01-02T03:04:06Z"),
    ],
)
async def test_a_count_told_again_with_other_content_is_refused_and_holds_up_nothing(
    auditor: Auditor, field: str, value: str
) -> None:
    organization = auditor.organization
    await append(auditor.ledger, fact(organization, 1))
    refused, taken = await append(auditor.ledger, fact(organization, 1, **{field: value}), fact(organization, 2))
    error = refusal(refused)
    assert (type(error), error.reason, error.details["field"]) == (AlreadyExists, "SOURCE_SEQ_REUSED", field)
    assert taken.seq == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_seq", 0),
        ("organization_id", "org_1"),
        ("actor", ""),
        ("actor", "a" * 129),
        ("action", "Agent.created"),
        ("action", "created"),
        ("subject", "s" * 201),
        ("subject", "\x00"),
        ("detail", ""),
        ("detail", "[]"),
        ("detail", '{"a":1.5}'),
        ("detail", '{"a":1e3}'),
        ("detail", '{"a":NaN}'),
        ("detail", '{"a":9007199254740992}'),
        ("detail", '{"a":1,"a":2}'),
        ("detail", '{"a":"\\u0000"}'),
        ("detail", '{"a":"\\ud800"}'),
        ("detail", '{"é":1}'),
        ("detail", '{"a":' * 9 + "1" + "}" * 9),
        ("detail", "[" * 20_000),
        ("detail", json.dumps({"a": "x" * 32_768})),
        ("time", "1970-01-01T00:00:00Z"),
    ],
)
async def test_a_fact_that_is_wrong_names_its_field_and_holds_up_no_other(
    auditor: Auditor, field: str, value: object
) -> None:
    wrong, right = await append(
        auditor.ledger, fact(auditor.organization, 1, **{field: value}), fact(auditor.organization, 2)
    )
    error = refusal(wrong)
    assert (type(error), error.details["field"]) == (InvalidArgument, field)
    assert right.seq == 1


async def test_a_request_without_facts_or_with_one_twice_is_refused(auditor: Auditor) -> None:
    twice = fact(auditor.organization, 1)
    for facts in ([], [twice, twice], [fact(auditor.organization, n + 1) for n in range(201)]):
        with pytest.raises(InvalidArgument) as wrong:
            await append(auditor.ledger, *facts)
        assert wrong.value.details["field"] == "facts"


async def test_only_services_tell_and_only_the_edge_reads(auditor: Auditor, issuer: TestIssuer) -> None:
    with pytest.raises(PermissionDenied):
        await append(auditor.ledger, fact(auditor.organization, 1), source="operator")
    with caller.acting(issuer.person()), pytest.raises(NotFound):
        await call(auditor.stub.ListAudit, pb.ListAuditRequest(organization_id=auditor.organization))


async def test_entries_are_listed_by_actor_action_and_time(auditor: Auditor) -> None:
    organization = auditor.organization
    await append(auditor.ledger, *(fact(organization, n, actor=f"usr_{n % 2}") for n in range(1, 6)))
    await append(auditor.ledger, fact(organization, 1, action="credential.added"), source="vault")
    await auditor.grow(4)
    everything = await auditor.listed()
    moment = everything[4].time
    cases: list[tuple[dict[str, object], list[int]]] = [
        ({}, list(range(10, 0, -1))),
        ({"actor": "usr_1", "action": "agent.created"}, [5, 3, 1]),
        ({"action": "credential.*"}, [6]),
        ({"action": "test.grown"}, [10, 9, 8, 7]),
        ({"end_time": moment}, [5, 4, 3, 2, 1]),
        ({"start_time": moment, "action": "agent.*"}, []),
        ({"start_time": moment}, [10, 9, 8, 7, 6]),
    ]
    for wanted, seqs in cases:
        assert [entry.seq for entry in await auditor.listed(**wanted)] == seqs, wanted
    told, own = everything[4], everything[0]
    assert (told.source, told.source_seq, told.detail) == ("vault", 1, '{"a":true,"b":[1,"é\\n"]}')
    assert (own.source, own.source_seq, own.detail) == ("ledger", 0, "{}")


async def test_a_page_looks_at_so_many_entries_and_the_list_goes_on(auditor: Auditor) -> None:
    await append(auditor.ledger, fact(auditor.organization, 1))
    await auditor.grow(store.SCAN_MAX + 1)
    with caller.acting(auditor.viewer):
        request = pb.ListAuditRequest(organization_id=auditor.organization, actor="usr_1")
        page = await call(auditor.stub.ListAudit, request)
    assert (len(page.entries), bool(page.next_page_token)) == (0, True)
    assert [entry.seq for entry in await auditor.listed(actor="usr_1")] == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("actor", "a" * 129), ("action", "x y"), ("action", "*"), ("page_size", 101), ("page_token", "x")],
)
async def test_a_list_names_the_field_that_is_wrong(auditor: Auditor, field: str, value: object) -> None:
    request = pb.ListAuditRequest(organization_id=auditor.organization)
    setattr(request, field, value)
    with caller.acting(auditor.viewer), pytest.raises(InvalidArgument) as wrong:
        await call(auditor.stub.ListAudit, request)
    assert wrong.value.details["field"] == field
