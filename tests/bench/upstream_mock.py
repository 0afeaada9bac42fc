"""A provider that costs next to nothing: one fixed chat completion, or a stream of a hundred events.

Run as `python -m tests.bench.upstream_mock PORT [PAUSE_MS]`. Each event is written in a loop turn of its own, so that
it travels alone; PAUSE_MS waits between two.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import cast

import uvloop

EVENTS = 100  # the last of them has the usage; [DONE] comes after them
MODEL = "gpt-4o-mini-2024-07-18"
CONTENT = (
    "Every answer of this provider is the same: a few dozen words that stand for what a small model would say to " * 2
)
INPUT_TOKENS, OUTPUT_TOKENS, STREAMED_TOKENS = 42, 31, EVENTS - 3
WORDS = tuple(f" word{number}" for number in range(STREAMED_TOKENS))
HEAD_BYTES_MAX, BODY_BYTES_MAX = 16_384, 65_536

_DETAILS = (
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}'
)


def _usage(output: int) -> str:
    counts = f'"prompt_tokens":{INPUT_TOKENS},"completion_tokens":{output},"total_tokens":{INPUT_TOKENS + output}'
    return f"{{{counts},{_DETAILS}}}"


def _document(kind: str, rest: str) -> str:
    first = f'"id":"chatcmpl-0123456789abcdefghijklmnop","object":"{kind}","created":1760000000,"model":"{MODEL}"'
    return f"{{{first},{rest}}}"


def _event(rest: str) -> bytes:
    return f"data: {_document('chat.completion.chunk', rest)}\n\n".encode()


def _choice(delta: str, reason: str = "null") -> str:
    return f'"choices":[{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{reason}}}],"usage":null'


WHOLE = _document(
    "chat.completion",
    f'"choices":[{{"index":0,"message":{{"role":"assistant","content":"{CONTENT}","refusal":null,"annotations":[]}},'
    f'"logprobs":null,"finish_reason":"stop"}}],"usage":{_usage(OUTPUT_TOKENS)},"service_tier":"default"',
).encode()
STREAM: Sequence[bytes] = (
    _event(_choice('"role":"assistant","content":"","refusal":null')),
    *(_event(_choice(f'"content":"{word}"')) for word in WORDS),
    _event(_choice("", '"stop"')),
    _event(f'"choices":[],"usage":{_usage(STREAMED_TOKENS)}'),
    b"data: [DONE]\n\n",
)

_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE) + WHOLE
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_CHUNKS = [b"%x\r\n%b\r\n" % (len(event), event) for event in STREAM]
_CHUNKS[-1] += b"0\r\n\r\n"
_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection; a request says its length, and the next one comes after the answer."""

    pause_seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.loop = asyncio.get_running_loop()
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            self._refuse_past(HEAD_BYTES_MAX)
            return
        length = _length(head)
        if length is None or length > BODY_BYTES_MAX or len(body) > length:
            self._refuse_past(0)
        elif len(body) == length:
            self.received = b""
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' in body or b'"stream": true' in body:
            self.transport.write(_STREAM_HEAD)
            self._step(0)
        elif body:
            self.transport.write(_WHOLE)
        else:
            self._refuse_past(0)

    def _step(self, number: int) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(_CHUNKS[number])
        if number + 1 == len(_CHUNKS):
            return
        if self.pause_seconds:
            self.loop.call_later(self.pause_seconds, self._step, number + 1)
        else:
            self.loop.call_soon(self._step, number + 1)

    def _refuse_past(self, size: int) -> None:
        if len(self.received) >= size:
            self.transport.write(_UNREADABLE)
            self.transport.close()


def _length(head: bytes) -> int | None:
    """Return what the head says the body's length is; None where it does not say."""
    lowered = head.lower()
    _, found, rest = lowered.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else None


async def main(port: int, pause_ms: float) -> None:
    Provider.pause_seconds = pause_ms / 1000
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
