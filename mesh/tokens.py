"""Mesh tokens: short-lived ES256 JWTs that say which person acts, with which role where; verified by public key.

Claims: iss, aud, sub (person), sid (session), grants ({organization: role}), iat, exp (RFC 7519); the header names the
key. Issuing needs identity's private key; who may do what with a role is in `mesh.access`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from mesh.caller import Person
from mesh.errors import Unauthenticated
from mesh.secret import Secret

ISSUER = "mandate"
AUDIENCE = "mandate-mesh"
TYPE = "JWT"  # an agent's access token is another (at+jwt), so that neither passes for the other
LIFETIME = timedelta(seconds=120)
LEEWAY_SECONDS = 5
KEY_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # whoever forges a token chooses what is looked up


class KeySource(Protocol):
    """Where a verifier finds the public key of a key id."""

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        """Return the key, or None when no such key is known."""
        ...


@dataclass(frozen=True, slots=True)
class Signer:
    """The key that signs now."""

    key_id: str
    private_key: ec.EllipticCurvePrivateKey

    def sign(self, person_id: str, session_id: str, grants: Mapping[str, str], now: datetime) -> Secret:
        """Issue a token for one person."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": person_id,
            "sid": session_id,
            "grants": dict(grants),
            "iat": now,
            "exp": now + LIFETIME,
        }
        return Secret(
            jwt.encode(claims, self.private_key, algorithm="ES256", headers={"typ": TYPE, "kid": self.key_id})
        )


async def verify(token: Secret, keys: KeySource) -> Person:
    """Return the person whom a token vouches for; UNAUTHENTICATED when it does not hold."""
    try:
        header = jwt.get_unverified_header(token.reveal())
    except jwt.InvalidTokenError:
        raise _refused() from None
    if header.get("typ") != TYPE:
        raise _refused()
    key_id = header.get("kid")
    key = await keys.public_key(key_id) if isinstance(key_id, str) and KEY_ID.fullmatch(key_id) else None
    if key is None:
        raise _refused()
    try:
        claims = jwt.decode(
            token.reveal(),
            key,
            algorithms=["ES256"],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub", "sid", "grants"]},
        )
    except jwt.InvalidTokenError:
        raise _refused() from None
    return Person(claims["sub"], claims["sid"], claims["grants"], token)


def public_jwk(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as a JSON Web Key (RFC 7517)."""
    members: dict[str, Any] = ECAlgorithm.to_jwk(key, as_dict=True)
    return json.dumps(members, sort_keys=True)


def key_of_jwk(text: str) -> ec.EllipticCurvePublicKey:
    """Read a public JSON Web Key; ValueError for anything else."""
    try:
        members: object = json.loads(text)
        key = ECAlgorithm.from_jwk(members) if isinstance(members, dict) else None
    except jwt.InvalidKeyError as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not a public elliptic-curve key")  # noqa: TRY004  # it is the text that is wrong
    return key


def _refused() -> Unauthenticated:
    return Unauthenticated("BAD_TOKEN", "the token is not valid here or has expired")
