"""Where an access token comes from: the bearer of a script, or the cookie of a browser with proof against forgery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from graphql_edge.operation import Operation
from mesh.secret import Secret

BEARER = "bearer "
CSRF_HEADER = "x-mandate-csrf"
TOKEN_MAX = 512


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Nobody says who he is."""


@dataclass(frozen=True, slots=True)
class Presented:
    """A token, and whether a cookie brought it."""

    access_token: Secret
    by_cookie: bool


@dataclass(frozen=True, slots=True)
class Forged:
    """A cookie that came along with a request that another site may have made."""

    message: str


@dataclass(frozen=True, slots=True)
class Sessions:
    """The cookie of this mesh; its name tells meshes on one host apart."""

    instance: str
    secure: bool
    cors_origins: tuple[str, ...]

    @property
    def cookie(self) -> str:
        """Return the cookie's name."""
        return f"mandate_session_{self.instance}"

    def presented(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Anonymous | Presented | Forged:
        """Read who a request says that it comes from; a bearer makes cookies ignored."""
        authorization = headers.get("authorization", "")
        if authorization[: len(BEARER)].lower() == BEARER:
            return Presented(Secret(authorization[len(BEARER) :].strip()[:TOKEN_MAX]), by_cookie=False)
        token = cookies.get(self.cookie)
        if not token:
            return Anonymous()
        if headers.get(CSRF_HEADER) != "1":
            return Forged(f"a session cookie needs the header {CSRF_HEADER}: 1")
        origin = headers.get("origin")
        if origin is not None and origin not in self.cors_origins and urlsplit(origin).netloc != headers.get("host"):
            return Forged("a session cookie is not accepted from another site")
        return Presented(Secret(token[:TOKEN_MAX]), by_cookie=True)

    def keep(self, response: web.Response, operation: Operation, *, https: bool) -> None:
        """Set or clear the cookie as the operation left it."""
        if operation.began is not None:
            response.set_cookie(
                self.cookie,
                operation.began.access_token.reveal(),
                max_age=operation.began.lifetime_seconds,
                path="/",
                httponly=True,
                samesite="Lax",
                secure=self.secure or https,
            )
        elif operation.ended:
            response.del_cookie(self.cookie, path="/")
