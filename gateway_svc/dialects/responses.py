"""OpenAI's Responses: a request read and checked, what it can cost, and how our limit is written into it. Pure.

The gateway keeps no responses, and lets nobody reach what a provider keeps for whoever else uses the same key: state on
the provider's side (earlier responses, conversations, stored prompts, files) is not served.
"""

from __future__ import annotations

from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.dialects.fields import (
    BYTES,
    COUNTED,
    FOREIGN,
    NEUTRAL,
    UNPRICED,
    UNSERVED,
    Fields,
    bounded,
    bytes_of,
    refuse,
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
from mesh.errors import InvalidArgument, invalid

ITEMS_MAX = 10_000
ITEM_TOKENS = 16  # what a provider's template adds to each item, with room
REQUEST_TOKENS = 64
TOOL_KINDS = ("function", "custom", "namespace")
PRICED_CACHE = (None, "30m")  # longer-lived cache writes cost more than the list says
# Items that are text and no more; whatever else there is may hold what no byte bounds.
ITEMS = frozenset(
    {
        *("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"),
        "reasoning",
    }
)
TEXT_PARTS = frozenset({"input_text", "output_text", "refusal", "summary_text", "reasoning_text", "text"})
IMAGE_PART = "input_image"
UNPRICED_PARTS = frozenset({"input_audio", "input_video"})

FIELDS: Fields = {
    "model": COUNTED,
    "input": COUNTED,
    "instructions": BYTES,
    "max_output_tokens": COUNTED,
    "stream": COUNTED,
    "service_tier": COUNTED,
    "prompt_cache_options": COUNTED,
    "store": COUNTED,
    "tools": BYTES,
    "text": BYTES,
    "tool_choice": NEUTRAL,
    "parallel_tool_calls": NEUTRAL,
    "max_tool_calls": NEUTRAL,  # of tools that the provider runs, and none of those is let through
    "temperature": NEUTRAL,
    "top_p": NEUTRAL,
    "top_logprobs": NEUTRAL,
    "user": NEUTRAL,
    "metadata": NEUTRAL,
    "reasoning": NEUTRAL,  # counts against the limit that is written upstream
    "safety_identifier": NEUTRAL,
    "prompt_cache_key": NEUTRAL,
    "prompt_cache_retention": NEUTRAL,
    "include": NEUTRAL,
    "stream_options": NEUTRAL,
    "truncation": NEUTRAL,
    "client_metadata": NEUTRAL,
    "background": UNSERVED,
    "conversation": UNSERVED,
    "previous_response_id": UNSERVED,
    "prompt": UNSERVED,
    "context_management": UNPRICED,  # compaction is billed beside the limit
    "moderation": UNPRICED,
    "access_programs": UNPRICED,
    "image": NEUTRAL,
    **FOREIGN,
    "max_tokens": UNPRICED,
    "max_completion_tokens": UNPRICED,
    "n": UNPRICED,
}


def parse(body: bytes) -> Request:
    """Read a request; InvalidArgument names the field that is wrong."""
    return read(document_of(body))


def read(document: JsonObject) -> Request:
    """Check a request that is JSON already; InvalidArgument names the field that is wrong."""
    refuse(document, FIELDS)
    if flag(document, "store"):
        raise InvalidArgument("UNSUPPORTED_FIELD", "store: the gateway keeps no responses", field="store")
    if member(document, "prompt_cache_options").get("ttl") not in PRICED_CACHE:
        raise unpriced("prompt_cache_options.ttl")
    items_of(document)
    return Request(
        dialect=Dialect.RESPONSES,
        document=document,
        model=model_of(document),
        stream=flag(document, "stream"),
        usage_wanted=True,
        max_tokens=whole(document, "max_output_tokens"),
        tools=_tools(document, "tools"),
        end_user=end_user(text(document, "safety_identifier"), text(document, "user")),
    )


def items_of(document: JsonObject) -> list[JsonObject]:
    """Return the input as items; InvalidArgument for what is none, or has no price, or is kept by the provider."""
    given = document.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not 0 < len(given) <= ITEMS_MAX:
        raise invalid("input", f"must be a text or a list of 1 to {ITEMS_MAX} items")
    items: list[JsonObject] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid(f"input[{index}]", "must be an object")
        if kind_of(item) == "item_reference":
            raise _kept(f"input[{index}]")
        for place, part in enumerate(_parts(item)):
            if isinstance(part, dict):
                _check_part(part, f"input[{index}].content[{place}]")
        items.append(item)
    return items


def kind_of(item: JsonObject) -> str:
    """Return what an item is; one with a role and no type is a message."""
    kind = item.get("type")
    if kind is None and "role" in item:
        return "message"
    return kind if isinstance(kind, str) else ""


def size(document: JsonObject) -> Size:
    """Return what bounds the input of a request that was read."""
    tokens, foreign = tokens_of(document, FIELDS)
    items = items_of(document)
    images = image_bytes = 0
    is_bounded = bounded(document, FIELDS)
    text_bytes = len(text(document, "instructions").encode(errors="replace"))
    for item in items:
        is_bounded = is_bounded and kind_of(item) in ITEMS and not item.get("encrypted_content")
        content = item.get("content")
        if isinstance(content, str):
            text_bytes += len(content.encode(errors="replace"))
        for part in _parts(item):
            if not isinstance(part, dict):
                is_bounded = False
            elif part.get("type") == IMAGE_PART:
                images += 1
                image_bytes += bytes_of(part)
            elif part.get("type") not in TEXT_PARTS:
                is_bounded = False
            else:
                text_bytes += len(text(part, "text").encode(errors="replace"))
    tokens += REQUEST_TOKENS + ITEM_TOKENS * len(items) + bytes_of(document.get("input")) - image_bytes
    return Size(tokens, foreign, images, text_bytes, is_bounded)


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:
    """Return the request as it goes to a provider: with our limit in it, and nothing kept there."""
    return {**request.document, "model": model, "max_output_tokens": output_tokens, "store": False}


def _parts(item: JsonObject) -> list[Json]:
    """Return everything that an item holds in parts: said, given back by a tool, or thought."""
    return [part for name in ("content", "output", "summary") for part in parts_of(item.get(name))]


def _check_part(part: JsonObject, field: str) -> None:
    kind = part.get("type")
    if isinstance(kind, str) and kind in UNPRICED_PARTS:
        raise unpriced(field, "no price covers sound or film")
    if part.get("file_id") is not None:
        raise _kept(f"{field}.file_id")


def _kept(field: str) -> InvalidArgument:
    text = f"{field}: what the provider keeps can't be referred to"
    return InvalidArgument("UNSUPPORTED_FIELD", text, field=field)


def _tools(document: JsonObject, name: str) -> tuple[str, ...]:
    """Return the names of the caller's functions; tools that the provider runs have fees, and are refused."""
    names: list[str] = []
    for index, tool in enumerate(listed(document, name, TOOLS_MAX)):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(kind, str) or kind not in TOOL_KINDS:
            raise unpriced(f"{name}[{index}]", "only functions of the caller have a price")
        names += _tools(tool, "tools") if kind == "namespace" else [text(tool, "name", f"{name}[{index}].name")]
    return tuple(names)
