from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.access_tokens import AUDIENCE, SCOPE, AccessToken, Refused, is_shaped, key_id_of, read
from mesh import ids, tokens
from mesh.errors import Unauthenticated
from mesh.secret import Secret
from tests.fakes.access_tokens import MISSING, Issuer, actors, encoded, stranger

NOW = datetime(2031, 5, 4, 12, 0, 0, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
DAY = 24 * 3600
AGENT = ids.new(ids.Kind.AGENT)
ISSUER = Issuer(tokens.Signer("ours", ec.generate_private_key(ec.SECP256R1())))
KEY = ISSUER.signer.private_key.public_key()


def judged(text: str) -> AccessToken | Refused:
    """Judge a token as the gateway does, with the one key that is known."""
    key_id = key_id_of(text)
    return key_id if isinstance(key_id, Refused) else read(text, KEY, NOW)


def of(header: dict[str, Any] | None = None, **changes: Any) -> AccessToken | Refused:
    return judged(ISSUER.token(AGENT, NOW, header, **changes))


def test_a_good_token_says_whose_it_is_and_for_how_long() -> None:
    token = of(jti="tok-1", client_id="cli-1", scope=f"openid {SCOPE}")
    expires_at = datetime.fromtimestamp(SECONDS + 600, UTC)
    assert token == AccessToken("tok-1", AGENT, "cli-1", "", frozenset({"openid", SCOPE}), expires_at)


@pytest.mark.parametrize(
    ("part", "header"),
    [
        ("alg", {"alg": "none"}),
        ("alg", {"alg": "ES384"}),
        ("alg", {"alg": "es256"}),
        ("alg", {"alg": MISSING}),
        ("typ", {"typ": "JWT"}),
        ("typ", {"typ": MISSING}),
        ("typ", {"typ": "at+jwt "}),
        ("kid", {"kid": MISSING}),
        ("kid", {"kid": "k" * 65}),
        ("kid", {"kid": "ours\0"}),
        ("header", {"kid": 1}),
        ("header", {"crit": ["exp"], "exp": 1}),
        ("header", {"crit": ["b64"], "b64": False}),
        ("header", {"jwk": {"kty": "EC"}}),
    ],
)
def test_a_header_that_is_wrong_is_refused_before_a_key_is_sought(part: str, header: dict[str, Any]) -> None:
    assert key_id_of(ISSUER.token(AGENT, NOW, header)) == Refused(part)


@pytest.mark.parametrize("name", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_both_names_of_the_type_are_taken(name: str) -> None:
    assert isinstance(of({"typ": name}), AccessToken)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("iss", {"iss": "somebody-else"}),
        ("iss", {"iss": MISSING}),
        ("aud", {"aud": "mandate-mesh"}),
        ("aud", {"aud": ["mandate-mesh", f"{AUDIENCE}/"]}),
        ("aud", {"aud": [[AUDIENCE]]}),
        ("aud", {"aud": {AUDIENCE: True}}),
        ("aud", {"aud": MISSING}),
        ("exp", {"exp": SECONDS}),
        ("exp", {"exp": MISSING}),
        ("exp", {"exp": None}),
        ("exp", {"exp": True}),
        ("exp", {"exp": str(SECONDS + 60)}),
        ("exp", {"exp": SECONDS + DAY + 1}),
        ("exp", {"exp": 10**30}),
        ("exp", {"iat": SECONDS - DAY, "exp": SECONDS + 1}),
        ("exp", {"iat": -(10**30)}),
        ("iat", {"iat": MISSING}),
        ("iat", {"iat": SECONDS + 6}),
        ("nbf", {"nbf": SECONDS + 6}),
        ("nbf", {"nbf": "now"}),
        ("nbf", {"nbf": None}),
        ("sub", {"sub": MISSING}),
        ("sub", {"sub": ids.new(ids.Kind.PERSON)}),
        ("sub", {"sub": [AGENT]}),
        ("jti", {"jti": MISSING}),
        ("jti", {"jti": ""}),
        ("jti", {"jti": "x" * 257}),
        ("client_id", {"client_id": MISSING}),
        ("client_id", {"client_id": 7}),
        ("scope", {"scope": [SCOPE]}),
        ("scope", {"scope": None}),
        ("act", {"act": "somebody"}),
        ("act", {"act": None}),
        ("act", {"act": {}}),
        ("act", {"act": {"sub": "actor-1", "act": {}}}),
        ("act", {"act": actors(9)}),
        ("cnf", {"cnf": {"jkt": "a-thumbprint"}}),
    ],
)
def test_a_claim_that_is_wrong_is_refused(part: str, changes: dict[str, Any]) -> None:
    assert of(**changes) == Refused(part)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["somebody-else", AUDIENCE]},
        {"exp": SECONDS + 0.5},
        {"iat": SECONDS + 5},
        {"nbf": SECONDS + 5},
        {"exp": SECONDS + DAY},
        {"jti": "x" * 256},
        {"a_claim_of_tomorrow": {"deep": [1]}},
    ],
)
def test_what_is_just_good_enough_is_taken(changes: dict[str, Any]) -> None:
    assert isinstance(of(**changes), AccessToken)


def test_a_token_without_a_scope_is_good_for_nothing() -> None:
    token = of(scope=MISSING)
    assert isinstance(token, AccessToken)
    assert token.scopes == frozenset()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_outermost_actor_is_the_one_who_acts(count: int) -> None:
    token = of(act=actors(count))
    assert isinstance(token, AccessToken)
    assert token.actor == "actor-1"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("signature", stranger("ours").token(AGENT, NOW)),
        ("signature", ISSUER.token(AGENT, NOW)[:-8] + "AAAAAAAA"),
        ("signature", ISSUER.token(AGENT, NOW).rpartition(".")[0] + ".AA"),
        ("alg", ISSUER.unsigned(AGENT, NOW)),
        ("alg", ISSUER.by_public_key(AGENT, NOW)),
        ("size", ISSUER.token(AGENT, NOW, padding="x" * 8192)),
        ("header", "AAAA.AAAA.AAAA"),
        ("header", "A.AAAA.AAAA"),
        ("header", f"{encoded([])}.AAAA.AAAA"),
        ("header", "W1tb" * 1_500 + ".AAAA.AAAA"),
        ("header", f"{encoded({'typ': 'at+jwt', 'alg': 'ES256', 'kid': ['ours']})}.AAAA.AAAA"),
    ],
)
def test_a_text_that_nobody_of_ours_signed_is_refused(part: str, text: str) -> None:
    assert judged(text) == Refused(part)


@pytest.mark.parametrize("claims", ["text", 1, None, [1]])
def test_claims_that_are_no_object_are_refused(claims: object) -> None:
    header = {"typ": "at+jwt", "alg": "ES256", "kid": ISSUER.signer.key_id}
    text = f"{encoded(header)}.{encoded(claims)}"
    assert judged(ISSUER.sealed(text)) == Refused("claims")


def test_a_persons_mesh_token_is_no_access_token() -> None:
    mesh = ISSUER.signer.sign(AGENT, "ses_1", {"org_1": "owner"}, NOW)
    assert judged(mesh.reveal()) == Refused("typ")


async def test_an_access_token_is_no_persons_mesh_token() -> None:
    class Keys(tokens.KeySource):
        async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
            return KEY if key_id == "ours" else None

    now = datetime.now(UTC)  # noqa: TID251  # the library reads the machine's clock
    both: dict[str, Any] = {"aud": [AUDIENCE, tokens.AUDIENCE], "sid": "ses_1", "grants": {"org_1": "owner"}}
    as_person = ISSUER.token(AGENT, now, {"typ": "JWT"}, **both)
    assert (await tokens.verify(Secret(as_person), Keys())).id == AGENT  # so it is the type alone that differs
    with pytest.raises(Unauthenticated):
        await tokens.verify(Secret(ISSUER.token(AGENT, now, **both)), Keys())


@given(st.text(max_size=300))
def test_only_three_base64url_parts_look_like_a_token(text: str) -> None:
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    parts = text.split(".")
    assert is_shaped(text) == (len(parts) == 3 and all(part and set(part) <= alphabet for part in parts))


@given(st.from_regex(r"[A-Za-z0-9_-]{0,300}\.[A-Za-z0-9_-]{0,300}\.[A-Za-z0-9_-]{0,100}", fullmatch=True))
def test_no_text_breaks_the_judge(text: str) -> None:
    assert isinstance(judged(text), Refused)
