"""OpenAI's chat completions: a request read, what it can cost, and how our limit is written into it. Pure."""

from __future__ import annotations

import re

from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.dialects.fields import (
    BYTES,
    COUNTED,
    FOREIGN,
    MARKS,
    NEUTRAL,
    UNPRICED,
    Fields,
    bounded,
    bytes_of,
    kept_by_provider,
    refuse,
    refuse_long_caches,
    tokens_of,
    unpriced,
)
from gateway_svc.dialects.reading import (
    TOOLS_MAX,
    Json,
    JsonObject,
    document_of,
    end_user,
    flag,
    listed,
    member,
    model_of,
    parts_of,
    text,
    whole,
)
from mesh.errors import invalid

CHOICES_MAX = 16
MESSAGES_MAX = 10_000
MESSAGE_TOKENS = 16  # what a provider's template adds to each message, with room
REQUEST_TOKENS = 64
COMPLETION_TOKENS_ONLY = re.compile(r"^(o[1-9]|gpt-[5-9])")  # models that refuse `max_tokens`
LIMITS = ("max_tokens", "max_completion_tokens")
TEXT_PARTS = ("text", "refusal")
UNPRICED_PARTS = ("input_audio", "audio", "input_video", "video_url")  # their tokens cost more than those of text
TOOL_KINDS = ("function", "custom")
MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call", "reasoning_content"}
)

FIELDS: Fields = {
    "model": COUNTED,
    "messages": COUNTED,
    "max_tokens": COUNTED,
    "max_completion_tokens": COUNTED,
    "n": COUNTED,
    "stream": COUNTED,
    "stream_options": COUNTED,
    "service_tier": COUNTED,
    "modalities": COUNTED,
    "tools": BYTES,
    "functions": BYTES,
    "response_format": BYTES,
    "stop": BYTES,
    "tool_choice": NEUTRAL,
    "function_call": NEUTRAL,
    "parallel_tool_calls": NEUTRAL,
    "temperature": NEUTRAL,
    "top_p": NEUTRAL,
    "top_k": NEUTRAL,
    "min_p": NEUTRAL,
    "frequency_penalty": NEUTRAL,
    "presence_penalty": NEUTRAL,
    "repetition_penalty": NEUTRAL,
    "logit_bias": NEUTRAL,
    "logprobs": NEUTRAL,
    "top_logprobs": NEUTRAL,
    "seed": NEUTRAL,
    "user": NEUTRAL,
    "store": NEUTRAL,
    "metadata": NEUTRAL,
    "reasoning_effort": NEUTRAL,  # reasoning counts against the limit that is written upstream
    "verbosity": NEUTRAL,
    "safety_identifier": NEUTRAL,
    "prompt_cache_key": NEUTRAL,
    "prompt_cache_retention": NEUTRAL,
    "prompt_cache_options": COUNTED,
    "moderation": UNPRICED,
    "audio": UNPRICED,
    "prediction": UNPRICED,  # rejected predictions are billed beside the limit
    "max_output_tokens": UNPRICED,
    **FOREIGN,
}


def parse(body: bytes) -> Request:
    """Read a request; InvalidArgument names the field that is wrong."""
    return read(document_of(body))


def read(document: JsonObject) -> Request:
    """Check a request that is JSON already; InvalidArgument names the field that is wrong."""
    model = model_of(document)
    stream = flag(document, "stream")
    _check_messages(document.get("messages"))
    refuse(document, FIELDS)
    member(document, "prompt_cache_options")
    refuse_long_caches(document)
    if document.get("modalities") not in (None, ["text"]):
        raise unpriced("modalities", "only text has a price")
    limits = [limit for name in LIMITS if (limit := whole(document, name)) is not None]
    return Request(
        dialect=Dialect.CHAT,
        document=document,
        model=model,
        stream=stream,
        usage_wanted=member(document, "stream_options").get("include_usage") is True,
        max_tokens=min(limits, default=None),
        choices=whole(document, "n", CHOICES_MAX) or 1,
        tools=_tools(document),
        end_user=end_user(text(document, "safety_identifier"), text(document, "user")),
    )


def messages_of(document: JsonObject) -> list[JsonObject]:
    """Return the messages of a request that was read."""
    messages = document.get("messages")
    return [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []


def size(document: JsonObject) -> Size:
    """Return what bounds the input of a request that was read."""
    messages = messages_of(document)
    tokens, foreign = tokens_of(document, FIELDS)
    images = image_bytes = text_bytes = 0
    is_bounded = bounded(document, FIELDS)
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            text_bytes += len(content.encode(errors="replace"))
        is_bounded = is_bounded and message.keys() <= MESSAGE_FIELDS
        for part in parts_of(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(part, dict) and kind == "image_url":
                images += 1
                image_bytes += _address_bytes(part.get("image_url"))
            elif not isinstance(part, dict) or kind not in TEXT_PARTS:
                is_bounded = False
            elif kind == "text" and isinstance(said := part.get("text"), str):
                text_bytes += len(said.encode(errors="replace"))
    tokens += REQUEST_TOKENS + MESSAGE_TOKENS * len(messages) + bytes_of(document.get("messages")) - image_bytes
    return Size(tokens, foreign, images, text_bytes, is_bounded)


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:
    """Return the request as it goes to a provider: with our limit in it, and with usage asked for."""
    document = {name: value for name, value in request.document.items() if name not in LIMITS}
    document["model"] = model
    # By the model and not as the client wrote it: a server that does not know the one would ignore it.
    document["max_completion_tokens" if COMPLETION_TOKENS_ONLY.match(model) else "max_tokens"] = output_tokens
    if request.stream:
        document["stream_options"] = {**member(request.document, "stream_options"), "include_usage": True}
    return document


def _check_messages(value: Json) -> None:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES_MAX:
        raise invalid("messages", f"must be a list of 1 to {MESSAGES_MAX} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise invalid(f"messages[{index}]", "must be an object")
        if not isinstance(message.get("role"), str):
            raise invalid(f"messages[{index}].role", "must be a text")
        if message.get("audio") is not None:
            raise unpriced(f"messages[{index}].audio", "no price covers sound or film")
        if not MARKS.isdisjoint(message):
            refuse_long_caches(message, f"messages[{index}].")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            _check_parts(content, f"messages[{index}].content")


def _check_parts(content: Json, field: str) -> None:
    if not isinstance(content, list):
        raise invalid(field, "must be a text or a list of parts")
    for place, part in enumerate(content):
        if not isinstance(part, dict):
            continue
        if part.get("type") in UNPRICED_PARTS:
            raise unpriced(f"{field}[{place}]", "no price covers sound or film")
        file = part.get("file")
        if isinstance(file, dict) and file.get("file_id") is not None:
            raise kept_by_provider(f"{field}[{place}].file.file_id")
        refuse_long_caches(part, f"{field}[{place}].")


def _address_bytes(image: Json) -> int:
    """Return how much of a request an image's address is: the image has a bound of its own, and all else counts."""
    address = image.get("url") if isinstance(image, dict) else image
    return bytes_of(address) if isinstance(address, str) else 0


def _tools(document: JsonObject) -> tuple[str, ...]:
    """Return the names of the caller's functions; tools that the provider runs have fees, and are refused."""
    if "tools" not in document and "functions" not in document:
        return ()
    names = [text(function, "name") for function in _functions(document)]
    for index, tool in enumerate(listed(document, "tools", TOOLS_MAX)):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(kind, str) or kind not in TOOL_KINDS:
            raise unpriced(f"tools[{index}]", "only functions of the caller have a price")
        refuse_long_caches(tool, f"tools[{index}].")
        named = tool.get(kind)
        names.append(text(named, "name", f"tools[{index}].{kind}.name") if isinstance(named, dict) else "")
    return tuple(names)


def _functions(document: JsonObject) -> list[JsonObject]:
    functions = listed(document, "functions", TOOLS_MAX)
    return [function for function in functions if isinstance(function, dict)]
