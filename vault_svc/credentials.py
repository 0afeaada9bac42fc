"""Provider credentials: what may be sealed and what may be shown of it. No cryptography in here."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import SplitResult, urlsplit

from mesh.errors import InvalidArgument, invalid
from mesh.secret import Secret

SECRET_MIN, SECRET_MAX = 8, 4_096
HINT = 4
LABEL_MAX = 100
URL_MAX = 500
VISIBLE = re.compile(r"[\x21-\x7e]+")  # a header's value can carry nothing else, nor can an address
HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+")
PRIVATE_SUFFIXES = (".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa")


class Provider(StrEnum):
    """The model providers whose keys an organization may bring."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Offered:
    """A credential that was checked and may be sealed."""

    provider: Provider
    secret: Secret
    label: str
    base_url: str

    @property
    def hint(self) -> str:
        """Return the secret's last four characters, which may be shown."""
        return self.secret.reveal()[-HINT:]


@dataclass(frozen=True, slots=True)
class Credential:
    """A provider key without its secret."""

    id: str
    organization_id: str
    provider: str
    label: str
    base_url: str
    hint: str
    created_at: datetime
    removed_at: datetime | None


def check(provider: str, secret: Secret, label: str, base_url: str) -> Offered:
    """Return what may be sealed; InvalidArgument names the field that is wrong and never shows the secret."""
    text = secret.reveal()
    if not SECRET_MIN <= len(text) <= SECRET_MAX or not VISIBLE.fullmatch(text):
        raise invalid("secret", f"must be {SECRET_MIN} to {SECRET_MAX} visible ASCII characters without spaces")
    label = label.strip()
    if len(label) > LABEL_MAX or not label.isprintable():
        raise invalid("label", f"must be at most {LABEL_MAX} characters, none of them a control character")
    return Offered(provider_of(provider), secret, label, base_url_of(base_url))


def provider_of(text: str) -> Provider:
    """Return the provider of that name; InvalidArgument when the vault keeps no keys of it."""
    if text not in set(Provider):
        raise invalid("provider", f"must be one of {', '.join(Provider)}")
    return Provider(text)


def base_url_of(text: str) -> str:
    """Return the address without a closing slash, "" for none; InvalidArgument unless it is public and https.

    A public name may still resolve to a private address: whoever connects checks what it resolves to.
    """
    if not text:
        return ""
    if len(text) > URL_MAX or not VISIBLE.fullmatch(text) or "\\" in text:
        raise _bad_url(f"must be at most {URL_MAX} visible ASCII characters without spaces")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _bad_url("is no address") from None
    if parts.scheme != "https":
        raise _bad_url("must begin with https://")
    if any(mark in parts.netloc for mark in "@%") or "?" in text or "#" in text or port == 0:
        raise _bad_url("must hold no user name, password, query or fragment")
    if not _is_public(parts):
        raise _bad_url("must name a public host")
    return text.rstrip("/")


def _is_public(parts: SplitResult) -> bool:
    host = (parts.hostname or "").lower().removesuffix(".")
    if parts.netloc.startswith("["):
        return _is_public_ip(host)
    last = host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):  # a client would read it as IPv4, in whatever notation
        return _is_public_ip(host)
    return HOST_NAME.fullmatch(host) is not None and not f".{host}".endswith(PRIVATE_SUFFIXES)


def _is_public_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or address.teredo
        if inside is not None or address in ipaddress.ip_network("64:ff9b::/96"):
            return False  # leads to an IPv4 address that was not looked at
    return address.is_global and not address.is_multicast


def _bad_url(problem: str) -> InvalidArgument:
    return invalid("base_url", problem)
