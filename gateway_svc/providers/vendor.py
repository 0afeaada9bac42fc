"""Vendors that are asked over HTTP: one address and one pool for the operator's, another for what tenants name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import orjson

from gateway_svc import genai
from gateway_svc.credentials import Credential
from gateway_svc.dialects import Dialect
from gateway_svc.providers import Call, Exchange, NotSent
from gateway_svc.providers.upstream import Answer, Upstream
from mesh.telemetry import traces

VERSION_PATH = "/v1"


class Vendor:
    """One vendor's API; `public` is the pool for addresses that tenants name."""

    needs_credential = True
    paths: ClassVar[Mapping[Dialect, str]] = {}
    common: ClassVar[frozenset[Dialect]] = frozenset()  # spoken by servers that copy the vendor's API, too

    def __init__(self, upstream: Upstream, public: Upstream, base_url: str) -> None:
        self._upstream = upstream
        self._public = public
        self._base_url = base_url
        self._spoken = frozenset(self.paths)

    def speaks(self, credential: Credential | None) -> frozenset[Dialect]:
        return self.common if credential is not None and credential.named else self._spoken

    def check(self, order: str) -> None:
        """Follow no orders: those are for the mock models."""

    def ask(self, call: Call) -> AbstractAsyncContextManager[Exchange]:
        if (span := traces.current()) is not None and call.credential is not None:
            span.tell(genai.server(self.way(call.credential)[1]))
        return self.post(call, self.paths[call.request.dialect])

    async def count(self, call: Call) -> int | None:
        return None

    def authorized(self, credential: Credential) -> dict[str, str]:
        """Return the headers that carry a key."""
        return {"authorization": f"Bearer {credential.secret.reveal()}"}

    def post(self, call: Call, path: str) -> AbstractAsyncContextManager[Answer]:
        """Send a call's document to one path."""
        credential = call.credential
        if credential is None:
            raise NotSent("there is no credential")
        pool, base_url = self.way(credential)
        headers = {
            **self.authorized(credential),
            "content-type": "application/json",
            "accept": "text/event-stream" if call.request.stream else "application/json",
            "accept-encoding": "identity",
            "x-request-id": call.request_id,
        }
        if not credential.named and (trace := traces.traceparent()) is not None:
            headers["traceparent"] = trace  # operators' upstreams alone may learn of our traces
        return pool.post(_address(base_url, path), headers, orjson.dumps(call.document))

    def way(self, credential: Credential) -> tuple[Upstream, str]:
        """Return the pool and the address that a key leads to."""
        return (self._public, credential.base_url) if credential.named else (self._upstream, self._base_url)


def _address(base_url: str, path: str) -> str:
    """Join the two; where the path has the version, a base that ends in it as well is as good as one that does not."""
    base = base_url.rstrip("/")
    return (base.removesuffix(VERSION_PATH) if path.startswith(VERSION_PATH) else base) + path
