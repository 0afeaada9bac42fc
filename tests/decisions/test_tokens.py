from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh import tokens
from mesh.errors import Unauthenticated
from mesh.secret import Secret

NOW = datetime.now(UTC)  # noqa: TID251  # the library reads the machine's clock
OURS, THEIRS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
SIGNER = tokens.Signer("ours", OURS)
GOOD = SIGNER.sign("usr_1", "ses_1", {"org_1": "owner"}, NOW).reveal()
CLAIMS: dict[str, Any] = jwt.decode(GOOD, OURS.public_key(), ["ES256"], audience=tokens.AUDIENCE)


class Keys(tokens.KeySource):
    """One key, and every name that was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        self.asked.append(key_id)
        return OURS.public_key() if key_id == "ours" else None


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(**claims: object) -> str:
    return f"{encoded({'alg': 'none', 'kid': 'ours'})}.{encoded({**CLAIMS, **claims})}."


def signed(key: ec.EllipticCurvePrivateKey = OURS, key_id: str = "ours", **claims: object) -> str:
    return jwt.encode({**CLAIMS, **claims}, key, algorithm="ES256", headers={"kid": key_id})


def by_public_key() -> str:
    """Sign with the public key as if it were an HMAC's secret."""
    public = OURS.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{encoded({'alg': 'HS256', 'kid': 'ours'})}.{encoded(CLAIMS)}"
    digest = hmac.digest(public, text.encode(), hashlib.sha256)
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


async def test_a_token_that_identity_signed_vouches_for_its_person() -> None:
    person = await tokens.verify(Secret(GOOD), Keys())
    assert (person.id, person.session_id, dict(person.grants)) == ("usr_1", "ses_1", {"org_1": "owner"})


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="nothing"),
        pytest.param(GOOD[:-8] + "AAAAAAAA", id="another signature"),
        pytest.param(GOOD.rpartition(".")[0] + ".", id="no signature"),
        pytest.param(unsigned(), id="alg none"),
        pytest.param(by_public_key(), id="the public key as a shared secret"),
        pytest.param(signed(THEIRS), id="signed by a stranger under our name"),
        pytest.param(signed(key_id="theirs"), id="a key that nobody published"),
        pytest.param(signed(aud="somebody-else"), id="for another audience"),
        pytest.param(signed(iss="somebody-else"), id="from another issuer"),
        pytest.param(signed(exp=NOW - timedelta(seconds=10)), id="expired"),
        pytest.param(signed(exp=None), id="without end"),
    ],
)
async def test_a_token_that_does_not_hold_says_nothing_but_that(token: str) -> None:
    with pytest.raises(Unauthenticated) as error:
        await tokens.verify(Secret(token), Keys())
    assert error.value.reason == "BAD_TOKEN"


@pytest.mark.parametrize("key_id", ["ours\0", "\ud800", "o" * 65, ""])
async def test_a_made_up_key_name_is_looked_up_nowhere(key_id: str) -> None:
    keys = Keys()
    with pytest.raises(Unauthenticated):
        await tokens.verify(Secret(signed(key_id=key_id)), keys)
    assert keys.asked == []
