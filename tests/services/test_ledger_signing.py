from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from ledger_svc.signing import Signer
from mesh import audit_keys
from mesh.clock import SystemClock
from mesh.errors import MeshError, NotFound
from mesh.settings import SettingsError
from mesh.testing import TestIssuer
from mesh.verify import Broken, Complete, prove, verify
from tests.conftest import RunningLedger
from tests.services.audit_running import Auditor, auditing
from tests.services.ledger_running import owner, tenant


@pytest.fixture
async def auditor(ledger: RunningLedger, issuer: TestIssuer, tmp_path: Path) -> AsyncIterator[Auditor]:
    async with auditing(ledger, issuer, tmp_path, await tenant(ledger, 0)) as found:
        yield found


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
