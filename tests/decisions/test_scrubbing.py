from __future__ import annotations

import base64
import json

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
        status, told = failures.told(400, body.encode(), Secret(secret))
        assert status == 400
        assert told == dict.fromkeys(("message", "type", "param", "code"), "[redacted]")
        assert failures.stream_failure(body.encode(), Secret(secret)) == told
