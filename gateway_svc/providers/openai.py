"""OpenAI and whatever speaks its dialect: the request goes on with our limit in it, the answer's bytes come back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import orjson

from gateway_svc.bounds import upstream_body
from gateway_svc.credentials import Credential
from gateway_svc.providers import BrokenOff, Call, NotSent
from gateway_svc.providers.upstream import Answer, Upstream
from gateway_svc.settlement import FIRST_ERROR_STATUS
from mesh.errors import Unavailable


class OpenAI:
    """Chat completions as OpenAI serves them; `public` is the pool for addresses that tenants name."""

    needs_credential = True

    def __init__(self, upstream: Upstream, public: Upstream, base_url: str) -> None:
        self._upstream = upstream
        self._public = public
        self._base_url = base_url

    def check(self, call: Call) -> None:
        if call.credential is None:
            raise Unavailable("PROVIDER_NOT_CONFIGURED", "there is no key for this provider")

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[OpenAIExchange]:
        credential = call.credential
        if credential is None:
            raise NotSent("there is no credential")
        pool, base_url = self._place(credential)
        headers = {
            "authorization": f"Bearer {credential.secret.reveal()}",
            "content-type": "application/json",
            "accept": "text/event-stream" if call.chat.stream else "application/json",
            "accept-encoding": "identity",
            "x-request-id": call.request_id,
        }
        body = orjson.dumps(upstream_body(call.chat, call.model, call.output_tokens))
        async with pool.post(f"{base_url.rstrip('/')}/chat/completions", headers, body) as answer:
            yield OpenAIExchange(answer)

    def _place(self, credential: Credential) -> tuple[Upstream, str]:
        if credential.own and credential.base_url:
            return self._public, credential.base_url
        return self._upstream, self._base_url


class OpenAIExchange:
    """An answer that is in OpenAI's shape already."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.status = answer.status
        self.retry_after = answer.header("retry-after")

    async def body(self) -> bytes:
        body = await self._answer.body()
        if self.status < FIRST_ERROR_STATUS and not body.lstrip().startswith(b"{"):
            raise BrokenOff("the answer is no completion")
        return body

    def chunks(self) -> AsyncIterator[bytes]:
        return self._answer.chunks()
