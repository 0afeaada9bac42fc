"""Answers kept for replay tell nothing to who reads the database, and open nowhere but in their own row."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Any

import pytest

from gateway_svc import repeats
from gateway_svc.repeats import Keyed
from gateway_svc.replays import Replays
from mesh.settings import SettingsError
from tests.services.gateway_running import Mesh, gateway_running
from tests.services.replays_running import BODY, LIMITS, Pair, an_agent, keyed

SECRET_WORD = b"the patient's name is unusual"


async def test_what_rests_in_the_database_tells_neither_key_nor_answer(pair: Pair) -> None:
    wish = Keyed("a-telling-key")
    await pair.finished(wish, SECRET_WORD)
    (row,) = await pair.rows()
    kept = b"".join(value if isinstance(value, bytes) else str(value).encode() for value in row.values())
    assert len(row["transcript"]) > 0
    for plain in (SECRET_WORD, wish.key.encode(), BODY):
        assert plain not in kept


CHANGES = {
    "another request's": "request_id = 'req_other'",
    "another status": "status = 201",
    "another head": "head = replace(head, '5', '6')",
    "another answer": "transcript = set_byte(transcript, 40, get_byte(transcript, 40) # 1)",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_an_answer_in_a_changed_row_does_not_open(
    pair: Pair, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    wish = keyed()
    await pair.finished(wish)
    await pair.owner.execute(f"UPDATE gateway.replays SET {change} WHERE agent_id = $1", pair.agent.id)  # noqa: S608
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_EXPIRED"
    assert "replay.broken_seal" in caplog.messages


async def test_an_answer_in_another_agents_row_does_not_open(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    run = await pair.finished(keyed())
    wish, thief = keyed(), dataclasses.replace(pair.agent, id=an_agent().id)
    key = repeats.key_sha256(wish, thief.id, run.place.request_sha256)
    moved = "UPDATE gateway.replays SET agent_id = $2, key_sha256 = $3 WHERE agent_id = $1"
    await pair.owner.execute(moved, pair.agent.id, thief.id, key)
    asked = dataclasses.replace(pair, agent=thief).begin(pair.two, wish)
    assert await pair.reason(asked) == "IDEMPOTENCY_EXPIRED"
    assert "replay.broken_seal" in caplog.messages


async def test_an_answer_is_its_organizations_alone(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    wish = keyed()
    await pair.finished(wish)
    abroad = dataclasses.replace(pair.agent, organization_id=an_agent().organization_id)
    asked = dataclasses.replace(pair, agent=abroad).begin(pair.two, wish)
    assert await pair.reason(asked) == "IDEMPOTENCY_EXPIRED"
    assert "replay.broken_seal" in caplog.messages


async def test_an_answer_sealed_under_another_key_counts_as_not_kept(pair: Pair) -> None:
    wish = keyed()
    await pair.finished(wish)
    other = Replays(pair.database, secrets.token_bytes(32), LIMITS)
    assert await pair.reason(pair.begin(other, wish)) == "IDEMPOTENCY_EXPIRED"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sealing_key_file": Path("/nowhere/gateway.key")}, "MANDATE_GATEWAY_SEALING_KEY_FILE"),
        ({"replay_hours": 48, "replay_key_days": 1}, "MANDATE_GATEWAY_REPLAY_KEY_DAYS"),
    ],
)
async def test_a_gateway_that_could_not_keep_its_word_does_not_start(
    mesh: Mesh, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        async with gateway_running(mesh, tmp_path, **settings):
            pass
