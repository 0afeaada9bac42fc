from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.providers.http1.request import InvalidRequest, Origin, head_of, target_of

TARGET = target_of("https://api.example.com/v1/chat?a=b")


class Heard:
    """What a server's parser makes of a head."""

    def __init__(self, head: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.heads = 0
        httptools.HttpRequestParser(self).feed_data(head)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.heads += 1


ADDRESSES = [
    ("http://example.com", Origin(is_tls=False, host="example.com", port=80), "/", "example.com"),
    ("https://Example.COM:8443/a/b?c=d#e", Origin(True, "example.com", 8443), "/a/b?c=d", "example.com:8443"),
    ("https://example.com:443/", Origin(is_tls=True, host="example.com", port=443), "/", "example.com"),
    ("http://[::1]:81/x", Origin(is_tls=False, host="::1", port=81), "/x", "[::1]:81"),
    ("https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/\N{LATIN SMALL LETTER U WITH DIAERESIS}",
     Origin(is_tls=True, host="xn--bcher-kva.example", port=443), "/%C3%BC", "xn--bcher-kva.example"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "origin", "path", "host"), ADDRESSES)
def test_an_address_says_whom_to_ask_and_for_what(url: str, origin: Origin, path: str, host: str) -> None:
    target = target_of(url)
    assert (target.origin, target.opening) == (origin, f"POST {path} HTTP/1.1\r\nhost: {host}\r\n")


@pytest.mark.parametrize(
    "url",
    [
        "", "/v1", "example.com/v1", "ftp://example.com/", "https:///v1", "https://[::1", "http://h:99999/", "http://h:0/",
        "http://h/\r\nx: y", "http://h\r\nx: y/", "http://h/a b", "http://h\x00/", "http://a b/", "http://h/\t",
        "https://user:secret@example.com/", "https://user@example.com/", "http://h,i/", "http://[fe80::1%25eth0]/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_never_asked(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        target_of(url)
    assert "secret" not in str(caught.value)


def test_a_head_has_what_the_caller_gave_and_what_every_request_needs() -> None:
    heard = Heard(head_of(TARGET, {"authorization": "Bearer x", "x-\N{LATIN SMALL LETTER A}%s": "100%"}, 12))
    assert heard.url == b"/v1/chat?a=b"
    assert heard.headers == [
        (b"host", b"api.example.com"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", b"mandate"),
        (b"authorization", b"Bearer x"),
        (b"x-a%s", b"100%"),
        (b"content-length", b"12"),
    ]


def test_the_callers_word_stands_where_it_gives_a_usual_header() -> None:
    heard = Heard(head_of(TARGET, {"Accept-Encoding": "gzip", "user-agent": "u"}, 0))
    assert [name for name, _ in heard.headers] == [b"host", b"Accept-Encoding", b"user-agent", b"content-length"]


REFUSED = [
    {"a": "b\r\nc: d"}, {"a": "b\nc"}, {"a": "b\r"}, {"a": "\x00"}, {"a": "\x7f"}, {"a": "\N{EURO SIGN}"},
    {"a\r\nb": "c"}, {"a b": "c"}, {"": "c"}, {"a:": "c"}, {"\N{LATIN SMALL LETTER U WITH DIAERESIS}": "c"},
    {"Content-Length": "1"}, {"transfer-encoding": "chunked"}, {"HOST": "x"}, {"connection": "close"}, {"te": "x"},
    {"expect": "100-continue"}, {"upgrade": "x"}, {"trailer": "x"},
]  # fmt: skip


@pytest.mark.parametrize("headers", REFUSED, ids=repr)
def test_a_header_that_could_end_a_line_or_frame_the_body_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        head_of(TARGET, headers, 1)


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=4))
def test_no_header_makes_more_of_a_head_than_one(headers: dict[str, str]) -> None:
    try:
        head = head_of(TARGET, headers, 3)
    except InvalidRequest:
        return
    heard = Heard(head + b"abc")
    own = [pair for pair in heard.headers if pair[0] not in {b"host", b"accept-encoding", b"user-agent"}][:-1]
    assert heard.heads == 1
    assert own == [(name.encode(), value.encode("latin-1").strip(b" \t")) for name, value in headers.items()]
