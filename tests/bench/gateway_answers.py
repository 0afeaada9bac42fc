"""What an answer to the benchmark's question must say, whoever passed it on. Nothing here reads a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tests.bench import upstream_mock as mock

PROMPT = (
    "In one paragraph, and in words that a reader of newspapers would use: what does a budget do for an agent? " * 3
)
MOST_TOKENS = 128


class WrongAnswer(Exception):
    """An answer is not what the provider said, or lacks what the gateway owes."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What an answer says that it cost."""

    request_id: str
    micros: int


def question(model: str, *, streamed: bool) -> bytes:
    """Return the body of a request."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You answer in one paragraph."},
            {"role": "user", "content": PROMPT},
        ],
        "max_tokens": MOST_TOKENS,
    }
    if streamed:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(asked)


def request(path: str, port: int, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """Return a whole HTTP request."""
    lines = [f"POST {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "content-type: application/json"]
    lines += [f"{name}: {text}" for name, text in headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def check_whole(body: bytes) -> Charge | None:
    """Return the charge of a completion, None where there is none; raise WrongAnswer where it isn't the provider's."""
    document = orjson.loads(body)
    _same("content", document["choices"][0]["message"]["content"], mock.CONTENT)
    _same("finish_reason", document["choices"][0]["finish_reason"], "stop")
    _usage(document["usage"], mock.OUTPUT_TOKENS)
    return _charge(document.get("x_platform"))


def check_stream(body: bytes) -> Charge | None:
    """Do the same for a stream; the pieces may be cut in another way, and their text may not change."""
    parts = [part for part in body.split(b"\n\n") if part]
    _same("last event", parts[-1].strip(), b"data: [DONE]")
    events = [orjson.loads(part[6:]) for part in parts[:-1] if part.startswith(b"data: ")]
    said = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    _same("content", "".join(said), "".join(mock.WORDS))
    if not mock.EVENTS - 2 <= len(events) <= mock.EVENTS + 1:  # one gateway or another drops or splits what has no text
        raise WrongAnswer(f"{len(events)} events")
    usages = [event["usage"] for event in events if event.get("usage")]
    if not usages:
        raise WrongAnswer("no usage")
    _usage(usages[-1], mock.STREAMED_TOKENS)
    return _charge(next((event["x_platform"] for event in events if "x_platform" in event), None))


def _usage(found: Any, output: int) -> None:
    said = (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"])
    _same("usage", said, (mock.INPUT_TOKENS, output, mock.INPUT_TOKENS + output))


def _charge(x_platform: Any) -> Charge | None:
    return x_platform and Charge(x_platform["request_id"], x_platform["micro_credits_charged"])


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise WrongAnswer(f"{what} is {str(found)[:200]!r}")
