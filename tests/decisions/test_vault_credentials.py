from __future__ import annotations

import pytest

from mesh.errors import InvalidArgument
from mesh.secret import Secret
from vault_svc.credentials import base_url_of, check

GOOD = Secret("sk-" + "a" * 20)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "ftp://api.example.com",
        "https://",
        "https:///v1",
        "https://localhost",
        "https://LOCALHOST/v1",
        "https://localhost./v1",
        "https://db.localhost",
        "https://vault.internal",
        "https://metadata.google.internal/",
        "https://printer.local",
        "https://router.home.arpa",
        "https://intranet",
        "https://127.0.0.1",
        "https://127.1",
        "https://2130706433",
        "https://0x7f000001",
        "https://0x7f.0.0.1",
        "https://0177.0.0.1",
        "https://10.0.0.1/v1",
        "https://172.16.3.4",
        "https://192.168.0.1",
        "https://169.254.169.254/latest",
        "https://100.64.0.1",
        "https://0.0.0.0",
        "https://224.0.0.1",
        "https://255.255.255.255",
        "https://192.0.2.1",
        "https://[::1]",
        "https://[::]",
        "https://[fe80::1]",
        "https://[fe80::1%25eth0]",
        "https://[2606:4700::1111%25eth0]",
        "https://[fc00::1]",
        "https://[ff0e::1]",
        "https://[::ffff:127.0.0.1]",
        "https://[::ffff:8.8.8.8]",
        "https://[2002:7f00:1::]",
        "https://[64:ff9b::7f00:1]",
        "https://[not-an-address]",
        "https://user@api.example.com",
        "https://user:word@api.example.com",
        "https://api.example.com@127.0.0.1",
        "https://api.example.com/?a=1",
        "https://api.example.com/?",
        "https://api.example.com/#a",
        "https://api.example.com:0",
        "https://api.example.com:99999",
        "https://api.example.com:x",
        "https://api.example.com\\@127.0.0.1",
        "https://api.exam ple.com",
        "https://api.example.com\t",
        "https://api.example.com\n",
        "https://api.éxample.com",
        "https://-api.example.com",
        "https://api..example.com",
        "https://api.example.com/" + "a" * 500,
    ],
)
def test_an_address_that_is_not_public_and_https_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        base_url_of(url)
    assert refused.value.details == {"field": "base_url"}


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("", ""),
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/", "https://api.example.com"),
        ("https://api.example.com:8443/v1/", "https://api.example.com:8443/v1"),
        ("https://xn--xample-9ua.com", "https://xn--xample-9ua.com"),
        ("https://8.8.8.8/v1", "https://8.8.8.8/v1"),
        ("https://[2606:4700::1111]", "https://[2606:4700::1111]"),
    ],
)
def test_a_public_https_address_is_kept_without_its_closing_slash(url: str, kept: str) -> None:
    assert base_url_of(url) == kept


@pytest.mark.parametrize(
    ("field", "provider", "secret", "label"),
    [
        ("provider", "", GOOD, ""),
        ("provider", "mistral", GOOD, ""),
        ("provider", "OpenAI", GOOD, ""),
        ("secret", "openai", Secret("a" * 7), ""),
        ("secret", "openai", Secret("a" * 4097), ""),
        ("secret", "openai", Secret("sk-with space"), ""),
        ("secret", "openai", Secret("sk-with-newline\n"), ""),
        ("secret", "openai", Secret("sk-with-nul-\0"), ""),
        ("secret", "openai", Secret("sk-with-ünïcode"), ""),
        ("label", "openai", GOOD, "a" * 101),
        ("label", "openai", GOOD, "two\nlines"),
        ("label", "openai", GOOD, "hidden\u202e"),
    ],
)
def test_a_bad_field_is_named_and_the_secret_is_not_shown(
    field: str, provider: str, secret: Secret, label: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check(provider, secret, label, "")
    assert refused.value.details == {"field": field}
    assert secret.reveal() not in refused.value.message


def test_the_hint_is_the_last_four_characters() -> None:
    offered = check("anthropic", Secret("sk-ant-0123456789wxyz"), "  ours  ", "")
    assert (offered.hint, offered.label) == ("wxyz", "ours")


@pytest.mark.parametrize("length", [8, 4096])
def test_a_secret_may_have_8_to_4096_characters(length: int) -> None:
    assert check("openai", Secret("a" * length), "", "").secret.reveal() == "a" * length
