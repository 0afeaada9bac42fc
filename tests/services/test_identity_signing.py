from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import secrets
from pathlib import Path

import pytest

from identity_svc.parts import assembled
from identity_svc.signing import SEALING_SETTING
from mandate.identity.v1 import keys_pb2 as pb
from mesh import key_file, tokens
from mesh.client import call
from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.settings import SettingsError
from mesh.testing import House
from tests.fakes.ledger import FakeLedger
from tests.services.identity_running import (
    as_owner,
    identity_running,
    runtime_of,
    settings_of,
    signing,
    working,
)


@pytest.fixture(autouse=True)
async def no_keys(house: House) -> None:
    async with as_owner(house) as owner:
        await owner.execute("DELETE FROM signing_keys")


async def test_no_key_signs_before_the_ledger_has_it(house: House) -> None:
    ledger = FakeLedger()
    async with assembled(runtime_of(house, ledger), settings_of(house)) as parts, working(parts):
        await asyncio.sleep(0.5)
        with pytest.raises(Unavailable) as early:
            parts.keys.signer()
        assert early.value.reason == "NO_SIGNING_KEY"
        assert set(await parts.keys.published()) != set()  # those who verify may have it already
        async with ledger.serving(house):
            await signing(parts)
            assert set(ledger.keys) == {parts.keys.signer().key_id}


async def test_replicas_that_start_together_make_one_key(house: House) -> None:
    ledger = FakeLedger()
    runtime, settings = runtime_of(house, ledger), settings_of(house)
    async with (
        ledger.serving(house),
        assembled(runtime, settings) as one,
        assembled(runtime, settings) as two,
        working(one),
        working(two),
    ):
        await asyncio.gather(signing(one), signing(two))
        assert one.keys.signer().key_id == two.keys.signer().key_id
    async with as_owner(house) as owner:
        assert await owner.fetchval("SELECT count(*) FROM signing_keys") == 1


async def test_a_restart_keeps_the_key_and_tells_a_forgetful_ledger(house: House) -> None:
    async with identity_running(house) as identity:
        before = identity.parts.keys.signer().key_id
    async with identity_running(house) as identity:
        assert identity.parts.keys.signer().key_id == before
        await identity.ledger.told(before)


async def test_the_published_keys_verify_what_was_signed(house: House) -> None:
    async with identity_running(house) as identity:
        session = await identity.sign_up()
        caller = await identity.caller_of(session)
        answer = await call(identity.keys.ListVerificationKeys, pb.ListVerificationKeysRequest())
        members = json.loads(answer.keys[0].jwk)
        assert set(members) == {"kty", "crv", "x", "y"}

        class Published(tokens.KeySource):
            async def public_key(self, key_id: str) -> tokens.ec.EllipticCurvePublicKey | None:
                found = {key.key_id: key.jwk for key in answer.keys}.get(key_id)
                return tokens.key_of_jwk(found) if found else None

        assert caller.person is not None
        person = await tokens.verify(caller.person.token, Published())
    assert (person.id, person.session_id) == (session.person.id, session.id)


async def test_a_private_key_rests_sealed(house: House) -> None:
    async with identity_running(house):
        pass
    async with as_owner(house) as owner:
        sealed = await owner.fetchval("SELECT sealed_private_key FROM signing_keys")
    assert (sealed or b"").startswith(b"MS1")


async def test_another_sealing_key_is_told_by_the_settings_name(house: House, tmp_path: Path) -> None:
    async with identity_running(house):
        pass
    other = tmp_path / "other.key"
    other.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    settings = dataclasses.replace(settings_of(house), sealing_key_file=other)
    with pytest.raises(SettingsError, match="MANDATE_IDENTITY_SEALING_KEY_FILE"):
        async with assembled(runtime_of(house, FakeLedger()), settings):
            pass


@pytest.mark.parametrize("content", ["", "not base64!", base64.b64encode(b"too short").decode()])
def test_a_sealing_key_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identity.key"
    path.write_text(content)
    with pytest.raises(SettingsError, match=SEALING_SETTING):
        key_file.read(path, setting=SEALING_SETTING)


async def test_made_up_key_ids_do_not_load_the_database(house: House) -> None:
    async with identity_running(house) as identity:
        forged = tokens.Signer("made-up", tokens.ec.generate_private_key(tokens.ec.SECP256R1()))
        token = forged.sign("usr_x", "ses_x", {}, identity.parts.clock.now())
        for _ in range(3):
            with pytest.raises(tokens.Unauthenticated):
                await tokens.verify(Secret(token.reveal()), identity.parts.keys)
