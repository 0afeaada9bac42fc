"""Anthropic's Messages API behind chat completions; the translation itself is in `messages` and `messages_answers`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import orjson

from gateway_svc import sse
from gateway_svc.chat import Json
from gateway_svc.messages import messages_body
from gateway_svc.messages_answers import StreamTranslator, completion_of
from gateway_svc.providers import BrokenOff, Call, NotSent
from gateway_svc.providers.upstream import Answer, Upstream
from gateway_svc.settlement import FIRST_ERROR_STATUS

VERSION = "2023-06-01"


class Anthropic:
    """Messages as Anthropic serves them; `public` is the pool for addresses that tenants name."""

    needs_credential = True

    def __init__(self, upstream: Upstream, public: Upstream, base_url: str) -> None:
        self._upstream = upstream
        self._public = public
        self._base_url = base_url

    def check(self, call: Call) -> None:
        messages_body(call.chat, call.output_tokens)

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[AnthropicExchange]:
        credential = call.credential
        if credential is None:
            raise NotSent("there is no credential")
        named = credential.own and bool(credential.base_url)
        pool, base_url = (self._public, credential.base_url) if named else (self._upstream, self._base_url)
        headers = {
            "x-api-key": credential.secret.reveal(),
            "anthropic-version": VERSION,
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": call.request_id,
        }
        body = orjson.dumps(messages_body(call.chat, call.output_tokens))
        address = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/messages"
        async with pool.post(address, headers, body) as answer:
            yield AnthropicExchange(answer)


class AnthropicExchange:
    """An answer that is translated as it comes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.status = answer.status
        self.retry_after = answer.header("retry-after")

    async def body(self) -> bytes:
        body = await self._answer.body()
        if self.status >= FIRST_ERROR_STATUS:
            return body
        try:
            message: Json = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BrokenOff("the answer is not JSON") from None
        if not isinstance(message, dict):
            raise BrokenOff("the answer is no message")
        return orjson.dumps(completion_of(message))

    async def chunks(self) -> AsyncIterator[bytes]:
        splitter, translator = sse.Splitter(), StreamTranslator()
        async for data in self._answer.chunks():
            try:
                translated = b"".join(chunk for event in splitter.feed(data) for chunk in translator.take(event))
            except (orjson.JSONDecodeError, sse.OversizedEvent):
                raise BrokenOff("the stream is not the dialect's") from None
            if translated:
                yield translated
