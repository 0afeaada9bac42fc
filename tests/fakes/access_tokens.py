"""Agents' access tokens as an issuer would make them, right or wrong in one part."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway_svc.access_tokens import AUDIENCE, SCOPE
from mesh import ids, tokens

MISSING = object()
LIFETIME_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs access tokens with one key."""

    signer: tokens.Signer

    def claims(self, agent_id: str, now: datetime) -> dict[str, Any]:
        """Return the claims of a good token."""
        seconds = int(now.timestamp())
        return {
            "iss": tokens.ISSUER,
            "aud": AUDIENCE,
            "sub": agent_id,
            "client_id": "cli_reader",
            "jti": ids.new(ids.Kind.REQUEST),
            "iat": seconds,
            "exp": seconds + LIFETIME_SECONDS,
            "scope": SCOPE,
        }

    def token(self, agent_id: str, now: datetime, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return a token of these claims; MISSING takes one away, in the header too."""
        claims = _without({**self.claims(agent_id, now), **changes})
        named = _without({"typ": "at+jwt", "alg": "ES256", "kid": self.signer.key_id, **(header or {})})
        return self.sealed(f"{encoded(named)}.{encoded(claims)}")

    def sealed(self, text: str) -> str:
        """Return a header and claims with their signature."""
        signature = jwt.get_algorithm_by_name("ES256").sign(text.encode(), self.signer.private_key)
        return f"{text}.{_base64url(signature)}"

    def unsigned(self, agent_id: str, now: datetime) -> str:
        """Return a token whose algorithm is `none`."""
        header = {"typ": "at+jwt", "alg": "none", "kid": self.signer.key_id}
        return f"{encoded(header)}.{encoded(self.claims(agent_id, now))}."

    def by_public_key(self, agent_id: str, now: datetime) -> str:
        """Return a token signed with the public key as if it were an HMAC's secret."""
        public = self.signer.private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        header = {"typ": "at+jwt", "alg": "HS256", "kid": self.signer.key_id}
        text = f"{encoded(header)}.{encoded(self.claims(agent_id, now))}"
        return f"{text}.{_base64url(hmac.digest(public, text.encode(), hashlib.sha256))}"


def stranger(key_id: str) -> Issuer:
    """Return an issuer that uses somebody else's key id."""
    return Issuer(tokens.Signer(key_id, ec.generate_private_key(ec.SECP256R1())))


def encoded(part: object) -> str:
    """Return a part of a token."""
    return _base64url(json.dumps(part).encode())


def actors(count: int) -> dict[str, Any]:
    """Return an `act` of so many actors, `actor-1` the present one."""
    act: dict[str, Any] = {}
    for number in range(count, 0, -1):
        act = {"sub": f"actor-{number}", **({"act": act} if act else {})}
    return act


def _without(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not MISSING}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
