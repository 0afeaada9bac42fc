"""Agents' OAuth access tokens (RFC 9068), read and judged: ES256 JWTs of identity's, for this gateway alone. Pure.

Claims: iss, aud, sub (the agent), client_id, jti, iat, exp; scope; act (RFC 8693, section 4.1) where somebody acts as
the agent. A person's mesh token differs in type and audience and never passes. Whose keys verify, and whether the agent
may act now, is asked in `who`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import jwt
import orjson

from mesh import ids
from mesh.tokens import ISSUER, KEY_ID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from gateway_svc.dialects.reading import Json, JsonObject

TYPES = ("at+jwt", "application/at+jwt")
ALGORITHM = "ES256"
AUDIENCE = "mandate-gateway"
SCOPE = "gateway:completions"
SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
TOKEN_CHARACTERS_MAX = 8 * 1024
NAME_CHARACTERS_MAX = 256
LIFETIME_SECONDS_MAX = 24 * 3600
LEEWAY_SECONDS = 5  # for iat and nbf, where identity's clock is ahead of ours; exp has none
ACTORS_MAX = 8

_JWS = jwt.PyJWS(algorithms=[ALGORITHM])


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a token says once its signature holds; `actor` is who acts as the agent now, empty for the agent itself."""

    id: str
    agent_id: str
    client_id: str
    actor: str
    scopes: frozenset[str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """A token that is not good here: the part of it that is wrong, never its content."""

    part: str


def is_shaped(text: str) -> bool:
    """Say whether a text may be a token at all: three base64url parts."""
    return SHAPE.fullmatch(text) is not None


def key_id_of(text: str) -> str | Refused:
    """Return which key a token names; its type and algorithm are judged first, so that no key is sought in vain.

    A header of identity's holds texts alone: `crit` and what else a signature could hang on are not passed over.
    """
    if len(text) > TOKEN_CHARACTERS_MAX:
        return Refused("size")
    header = _header_of(text)
    if header is None or not all(isinstance(value, str) for value in header.values()):
        return Refused("header")
    if str(header.get("typ", "")).lower() not in TYPES:
        return Refused("typ")
    if header.get("alg") != ALGORITHM:
        return Refused("alg")
    key_id = header.get("kid")
    return key_id if isinstance(key_id, str) and KEY_ID.fullmatch(key_id) else Refused("kid")


def read(text: str, key: ec.EllipticCurvePublicKey, now: datetime) -> AccessToken | Refused:
    """Return what a token says, where `key` signed it and it is good here and now."""
    try:
        claims: Json = orjson.loads(_JWS.decode(text, key, algorithms=[ALGORITHM]))
    except jwt.PyJWTError:
        return Refused("signature")
    except orjson.JSONDecodeError:
        return Refused("claims")
    return _judged(claims, now.timestamp()) if isinstance(claims, dict) else Refused("claims")


def _header_of(text: str) -> JsonObject | None:
    part = text.partition(".")[0]
    try:
        header: Json = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):
        return None
    return header if isinstance(header, dict) else None


def _judged(claims: JsonObject, now_seconds: float) -> AccessToken | Refused:
    expires, issued = _seconds(claims.get("exp")), _seconds(claims.get("iat"))
    begins = _seconds(claims.get("nbf", 0))
    agent_id, token_id, client_id = (_name(claims.get(name)) for name in ("sub", "jti", "client_id"))
    scope, actor = claims.get("scope", ""), _actor(claims)
    holds = {
        "iss": claims.get("iss") == ISSUER,
        "aud": _is_audience(claims.get("aud")),
        "iat": issued <= now_seconds + LEEWAY_SECONDS,
        "nbf": begins <= now_seconds + LEEWAY_SECONDS,
        "exp": now_seconds < expires <= issued + LIFETIME_SECONDS_MAX,
        "sub": ids.kind_of(agent_id) is ids.Kind.AGENT,
        "jti": bool(token_id),
        "client_id": bool(client_id),
        "scope": isinstance(scope, str),
        "act": actor is not None,
        "cnf": "cnf" not in claims,  # it is bound to a key (RFC 7800) whose proof is not asked for here
    }
    wrong = next((part for part, well in holds.items() if not well), None)
    if wrong is not None:
        return Refused(wrong)
    scopes = frozenset(str(scope).split())
    return AccessToken(token_id, agent_id, client_id, actor or "", scopes, datetime.fromtimestamp(expires, UTC))


def _seconds(value: Json) -> float:
    """Read a NumericDate; NaN, which no comparison lets through, for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _name(value: Json) -> str:
    """Read a text of 1 to 256 characters; an empty one for anything else."""
    return value if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX else ""


def _is_audience(value: Json) -> bool:
    return value == AUDIENCE or (isinstance(value, list) and AUDIENCE in value)


def _actor(claims: JsonObject) -> str | None:
    """Return who acts now, empty where nobody but the agent does; None for a chain that is too long or names nobody."""
    if "act" not in claims:
        return ""
    chain: list[str] = []
    link: Json = claims["act"]
    while isinstance(link, dict) and len(chain) <= ACTORS_MAX:
        chain.append(_name(link.get("sub")))
        if "act" not in link:
            return chain[0] if all(chain) and len(chain) <= ACTORS_MAX else None
        link = link["act"]
    return None
