from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc import failures
from gateway_svc.scrubbing import scrub, writings
from mesh.secret import Secret

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60)


@given(visible, st.text(), st.text())
def test_no_writing_of_a_secret_is_left_in_a_text(secret: str, before: str, behind: str) -> None:
    for writing in writings(secret):
        assert writing not in scrub(f"{before}{writing}{behind}", Secret(secret))


@given(visible, st.binary(max_size=9), st.binary(max_size=9))
def test_a_secret_in_the_middle_of_base64_is_found(secret: str, before: bytes, behind: bytes) -> None:
    text = base64.b64encode(before + secret.encode() + behind).decode()
    assert any(writing in text for writing in writings(secret))


@given(visible)
def test_an_error_in_json_hides_a_secret_however_it_is_escaped(secret: str) -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in secret)
    for quoted in (escaped, json.dumps(secret)[1:-1], json.dumps(secret)[1:-1].replace("/", "\\/")):
        body = f'{{"error": {{"message": "{quoted}", "type": "{quoted}", "param": "{quoted}", "code": "{quoted}"}}}}'
        status, told = failures.told(400, body.encode(), Secret(secret), own=True)
        assert status == 400
        assert told == dict.fromkeys(("message", "type", "param", "code"), "[redacted]")
        assert failures.stream_failure(body.encode(), Secret(secret)) == told


@given(visible, st.data())
def test_a_secret_is_found_though_each_of_its_letters_is_escaped_in_another_way(
    secret: str, data: st.DataObject
) -> None:
    ways = st.sampled_from(
        ["{0}", "\\{0}", "%{1:02x}", "%{1:02X}", "\\u{1:04x}", "\\\\u{1:04X}", "&#{1};", "&#x{1:X};"]
    )
    written = "".join(data.draw(ways).format(letter, ord(letter)) for letter in secret)
    for whole in (written, html.escape(secret), quote(secret, safe="")):
        assert scrub(f"bad key {whole}, they say", Secret(secret)) == "bad key [redacted], they say"


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("no sk-ant-api03-Ab_c-9", "no [redacted]"),
        ("no gsk_Abcdef0123", "no [redacted]"),
        ("no AIzaSyA-b_c9876543210", "no [redacted]"),
        ("Authorization: Bearer abc123xyz==", "Authorization: [redacted]"),
        ("bearer eyJhbGciOiJF.eyJzdWIi.c2ln", "[redacted]"),
        ("a Bearer token is missing", "a Bearer token is missing"),
        ("risk-averse tasks", "risk-averse tasks"),
    ],
)
def test_what_looks_like_a_key_is_taken_out(text: str, scrubbed: str) -> None:
    assert scrub(text, None) == scrubbed


QUOTA = "You exceeded your current quota, please check your plan and billing details."
OF_THE_ACCOUNT = [
    (402, "Payment required", None),
    (429, QUOTA, "insufficient_quota"),
    (429, "Billing hard limit has been reached", "billing_hard_limit_reached"),
    (400, "Your credit balance is too low to access the API", None),
    (403, "Project proj_Abc123def456 may not use this", None),
    (429, "Rate limit reached in organization org-Abc123def456 on tokens per min", "rate_limit_exceeded"),
]


def error_body(text: str, code: str | None) -> bytes:
    return orjson.dumps({"error": {"message": text, "type": "x", "param": None, "code": code}})


@pytest.mark.parametrize(("status", "text", "code"), OF_THE_ACCOUNT)
def test_nobody_is_told_of_the_platforms_account_at_a_provider(status: int, text: str, code: str | None) -> None:
    told = failures.told(status, error_body(text, code), None, own=False)
    assert told == (
        503,
        {
            "message": "the provider takes no more from this platform now",
            "type": "upstream_error",
            "param": None,
            "code": "upstream_quota",
        },
    )


@pytest.mark.parametrize(("status", "text", "code"), [case for case in OF_THE_ACCOUNT if case[0] != 403])
def test_an_organization_is_told_of_its_own_account(status: int, text: str, code: str | None) -> None:
    told_status, error = failures.told(status, error_body(text, code), None, own=True)
    assert (told_status, error["message"], error["code"]) == (status, text, code)


def test_the_platforms_account_is_named_in_no_other_error_either() -> None:
    body = error_body("org-Abc123def456 has no such model", None)
    assert failures.told(404, body, None, own=False)[1]["message"] == "[redacted] has no such model"
    assert failures.stream_failure(body, None)["message"] == "[redacted] has no such model"


def test_a_stream_tells_nothing_of_the_platforms_quota() -> None:
    assert failures.stream_failure(error_body(QUOTA, "insufficient_quota"), None)["code"] == "upstream_quota"


def test_a_members_text_is_cut() -> None:
    body = error_body("x" * 5_000_000, "y" * 5_000_000)
    _, error = failures.told(400, body, None, own=True)
    assert (len(str(error["message"])), len(str(error["code"]))) == (2_000, 200)
