from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from ledger_svc.signing import Signer
from ledger_svc.store import audit as store
from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import audit_keys, caller, faults
from mesh.client import call
from mesh.clock import SystemClock
from mesh.errors import AlreadyExists, InvalidArgument, MeshError, NotFound, PermissionDenied
from mesh.settings import SettingsError
from mesh.testing import TestIssuer
from mesh.verify import Broken, Complete, prove, verify
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, owner, tenant


@dataclass(frozen=True)
class Auditor:
    """An organization's chain as its viewer sees it, and the signer of all chains."""

    ledger: RunningLedger
    stub: rpc.AuditServiceAsyncStub
    viewer: caller.Caller
    organization: str
    signer: Signer
    path: Path

    async def export(self, page_size: int = 3, after_seq: int = 0) -> list[bytes]:
        lines: list[bytes] = []
        with caller.acting(self.viewer):
            while True:
                request = pb.ExportAuditRequest(
                    organization_id=self.organization, after_seq=after_seq, page_size=page_size
                )
                page = await call(self.stub.ExportAudit, request)
                lines += [line.encode() + b"\n" for line in page.lines]
                after_seq = page.last_seq
                if not page.more:
                    return lines

    async def listed(self, **wanted: object) -> list[pb.AuditEntry]:
        entries: list[pb.AuditEntry] = []
        token = ""
        with caller.acting(self.viewer):
            while True:
                request = pb.ListAuditRequest(
                    organization_id=self.organization, page_size=3, page_token=token, **wanted
                )
                page = await call(self.stub.ListAudit, request)
                entries += page.entries
                token = page.next_page_token
                if not token:
                    return entries

    async def head(self) -> pb.AuditHead:
        with caller.acting(self.viewer):
            return await call(self.stub.GetAuditHead, pb.GetAuditHeadRequest(organization_id=self.organization))

    async def proof(self, seq: int) -> bytes:
        request = pb.ProveAuditEntryRequest(organization_id=self.organization, seq=seq)
        with caller.acting(self.viewer):
            proved = await call(self.stub.ProveAuditEntry, request)
        return "".join(f"{line}\n" for line in proved.lines).encode()

    async def sign(self) -> None:
        await self.signer.sign_all()

    async def heads(self) -> int:
        query = "SELECT count(*) FROM audit_heads WHERE organization_id = $1"
        return await self.ledger.database.value(query, self.organization)

    async def grow(self, count: int) -> None:
        """Add facts in one commit."""
        async with owner(self.ledger.house) as connection:
            await connection.execute(
                "SELECT append_audit($1, ledger_time($1), array_fill('t'::text, ARRAY[$2::int]), "
                "array_fill('test.grown'::text, ARRAY[$2]), array_fill('s'::text, ARRAY[$2]), "
                "array_fill('{}'::text, ARRAY[$2]))",
                self.organization,
                count,
            )


@asynccontextmanager
async def auditing(ledger: RunningLedger, issuer: TestIssuer, folder: Path, who: Tenant) -> AsyncIterator[Auditor]:
    path = folder / "audit.json"
    audit_keys.create(path, SystemClock().now())
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        signer = Signer(ledger.database, path, 60)
        viewer = issuer.person(**{who.organization: "viewer"})
        yield Auditor(ledger, rpc.AuditServiceStub(channel), viewer, who.organization, signer, path)


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


async def test_a_chain_that_grew_is_signed_once_and_exported_with_its_head(auditor: Auditor) -> None:
    with pytest.raises(NotFound) as unsigned:
        await auditor.head()
    assert unsigned.value.reason == "AUDIT_NOT_SIGNED"
    await auditor.grow(4)
    await auditor.sign()
    await auditor.sign()
    head = await auditor.head()
    assert (await auditor.heads(), head.seq, head.key_id) == (1, 4, audit_keys.read(auditor.path).key_id)
    await auditor.grow(3)
    lines = await auditor.export(2)
    trusted = audit_keys.read(auditor.path).records[0]
    verdict = verify(lines, head=head.line.encode(), key=trusted)
    assert isinstance(verdict, Complete)
    assert verdict.head
    assert (verdict.seq, verdict.head.seq, verdict.head.vouched, len(lines)) == (7, 4, True, 8)
    truncated = verify(lines[:3], head=head.line.encode())
    assert truncated == Broken(4, 4, "is missing: the trusted head is at 4")
    assert len(await auditor.export(2, after_seq=4)) == 3


async def test_after_a_rotation_whoever_trusts_the_first_key_follows_to_the_next(auditor: Auditor) -> None:
    first = audit_keys.read(auditor.path).records[0]
    await auditor.grow(2)
    await auditor.sign()
    before = await auditor.export()
    audit_keys.rotate(auditor.path, SystemClock().now())
    await auditor.grow(2)
    await auditor.sign()
    verdict = verify(before + await auditor.export(after_seq=2), key=first)
    assert isinstance(verdict, Complete)
    assert verdict.head
    assert (verdict.head.seq, verdict.head.vouched) == (4, True)
    assert verdict.head.key_id == audit_keys.read(auditor.path).key_id != audit_keys.id_of(first)


async def test_any_entry_is_proved_by_the_signed_head(auditor: Auditor) -> None:
    trusted = audit_keys.read(auditor.path).records[0]
    for count in (1, 299, 700):
        await auditor.grow(count)
        await auditor.sign()
    for seq in (1, 2, 256, 257, 512, 513, 768, 999, 1000):
        verdict = prove(await auditor.proof(seq), head=(await auditor.head()).line.encode(), key=trusted)
        assert isinstance(verdict, Complete), (seq, verdict)
        assert verdict.seq == seq
    for seq in (0, -1, 1001):
        with pytest.raises(NotFound):
            await auditor.proof(seq)


async def test_a_stored_tree_that_was_changed_is_built_again(auditor: Auditor) -> None:
    await auditor.grow(600)
    await auditor.sign()
    query = "SELECT level, position, hash FROM audit_subtrees WHERE organization_id = $1 ORDER BY 1, 2"
    right = await auditor.ledger.database.rows(query, auditor.organization)
    assert [(row["level"], row["position"]) for row in right] == [(8, 0), (8, 1), (9, 0)]
    for change in ("UPDATE audit_subtrees SET hash = sha256('x')", "DELETE FROM audit_subtrees"):
        async with owner(auditor.ledger.house) as connection:
            await connection.execute(f"{change} WHERE organization_id = $1 AND level = 9", auditor.organization)
        with pytest.raises(MeshError) as broken:
            await auditor.proof(3)
        assert broken.value.reason == "AUDIT_TREE_BROKEN"
        await auditor.grow(1)
        await auditor.sign()
        assert await auditor.ledger.database.rows(query, auditor.organization) == right
        assert isinstance(prove(await auditor.proof(3)), Complete)


@pytest.mark.parametrize("seq", [1, 4, 5, 6])
async def test_nothing_is_signed_over_an_entry_that_was_changed(auditor: Auditor, seq: int) -> None:
    await auditor.grow(4)
    await auditor.sign()
    await auditor.grow(2)
    async with owner(auditor.ledger.house) as connection, connection.transaction():
        await connection.execute("ALTER TABLE audit DISABLE TRIGGER audit_unchanging")
        await connection.execute(
            "UPDATE audit SET line = replace(line, 'grown', 'shrunk') WHERE organization_id = $1 AND seq = $2",
            auditor.organization,
            seq,
        )
        await connection.execute("ALTER TABLE audit ENABLE TRIGGER audit_unchanging")
    await auditor.sign()
    assert await auditor.heads() == 1
    verdict = verify(await auditor.export())
    assert isinstance(verdict, Broken)
    assert verdict.seq == seq


async def test_nothing_is_signed_after_a_head_of_a_foreign_key(auditor: Auditor, tmp_path: Path) -> None:
    await auditor.grow(1)
    await auditor.sign()
    foreign = tmp_path / "foreign.json"
    audit_keys.create(foreign, SystemClock().now())
    await auditor.grow(1)
    await Signer(auditor.ledger.database, foreign, 60).sign_all()
    assert await auditor.heads() == 1


def test_a_key_file_is_its_users_own_and_whole(auditor: Auditor, tmp_path: Path) -> None:
    assert stat.S_IMODE(auditor.path.stat().st_mode) == 0o600
    auditor.signer.check()
    secret = json.loads(auditor.path.read_text())["private"]
    assert secret not in repr(audit_keys.read(auditor.path))
    other = tmp_path / "other.json"
    audit_keys.create(other, SystemClock().now() + timedelta(days=1))
    mixed = json.loads(auditor.path.read_text()) | {"private": json.loads(other.read_text())["private"]}
    for content, mode in ((auditor.path.read_text(), 0o640), ("{}", 0o600), (json.dumps(mixed), 0o600)):
        other.write_text(content)
        other.chmod(mode)
        with pytest.raises(SettingsError, match="MANDATE_LEDGER_AUDIT_KEY_FILE") as wrong:
            Signer(auditor.ledger.database, other, 60).check()
        assert secret not in str(wrong.value)
    with pytest.raises(SettingsError, match="MANDATE_LEDGER_AUDIT_KEY_FILE"):
        Signer(auditor.ledger.database, tmp_path / "none", 60).check()


def test_the_command_rotates_and_shows_keys(auditor: Auditor, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("show", "rotate", "show"):
        assert audit_keys.main([action, "audit", "--file", str(auditor.path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["key"]["id"] for line in shown[1:2]] == [json.loads(shown[3])["key"]["id"]]
    assert (shown[0], shown[1]) == (shown[2], shown[3])
    assert json.loads(auditor.path.read_text())["private"] not in "".join(shown)
    assert audit_keys.main(["show", "audit", "--file", str(auditor.path.parent / "none")]) == 1
