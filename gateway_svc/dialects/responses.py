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
from mesh.errors import InvalidArgument, invalid

ITEMS_MAX = 10_000
ITEM_TOKENS = 16  # what a provider's template adds to each item, with room
REQUEST_TOKENS = 64
TOOL_KINDS = ("function", "custom", "namespace")
# Items that are text and no more. Others come of tools with fees, bring tools along, change the request's terms in its
# midst, or name what the provider keeps, and one that nobody knows may do any of it.
ITEMS = frozenset(
    {
        *("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"),
        "reasoning",
    }
)
PARTS = ("content", "output", "summary")  # where items hold parts
TEXT_PARTS = ("input_text", "output_text", "refusal", "summary_text", "reasoning_text", "text")
IMAGE_PART = "input_image"
UNPRICED_PARTS = ("input_audio", "input_video")
PRICED_MODES = (None, "standard")  # others may run a model several times over
_UNSERVED_ITEM = "the gateway serves messages, calls of the caller's own tools and their outputs, and reasoning"

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
    member(document, "prompt_cache_options")
    refuse_long_caches(document)
    if member(document, "prompt_cache_options").get("comparison_response_id") is not None:
        raise kept_by_provider("prompt_cache_options.comparison_response_id")
    if member(document, "reasoning").get("mode") not in PRICED_MODES:
        raise unpriced("reasoning.mode")
    text(document, "instructions")
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
    """Return the input as items; InvalidArgument for what is none, or has no price, or is not served."""
    given = document.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not 0 < len(given) <= ITEMS_MAX:
        raise invalid("input", f"must be a text or a list of 1 to {ITEMS_MAX} items")
    items: list[JsonObject] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid(f"input[{index}]", "must be an object")
        if kind_of(item) not in ITEMS:
            raise InvalidArgument("UNSUPPORTED_FIELD", _UNSERVED_ITEM, field=f"input[{index}]")
        for name in PARTS:
            for place, part in enumerate(parts_of(item.get(name))):
                _check_part(part, f"input[{index}].{name}[{place}]")
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
        is_bounded = is_bounded and not item.get("encrypted_content")
        for part in _parts(item):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(part, str):
                text_bytes += len(part.encode(errors="replace"))
            elif isinstance(part, dict) and kind == IMAGE_PART:
                images += 1
                address = part.get("image_url")
                image_bytes += bytes_of(address) if isinstance(address, str) else 0
            elif not isinstance(part, dict) or kind not in TEXT_PARTS:
                is_bounded = False
            elif isinstance(said := part.get("text"), str):
                text_bytes += len(said.encode(errors="replace"))
    tokens += REQUEST_TOKENS + ITEM_TOKENS * len(items) + bytes_of(document.get("input")) - image_bytes
    return Size(tokens, foreign, images, text_bytes, is_bounded)


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:
    """Return the request as it goes to a provider: with our limit in it, and nothing kept there."""
    return {**request.document, "model": model, "max_output_tokens": output_tokens, "store": False}


def _parts(item: JsonObject) -> list[Json]:
    """Return everything that an item holds: said, given back by a tool, or thought; a text is one part."""
    found: list[Json] = []
    for name in PARTS:
        held = item.get(name)
        if held is not None:
            found.extend(held if isinstance(held, list) else [held])
    return found


def _check_part(part: Json, field: str) -> None:
    if not isinstance(part, dict):
        raise invalid(field, "must be an object")
    if part.get("type") in UNPRICED_PARTS:
        raise unpriced(field, "no price covers sound or film")
    if part.get("file_id") is not None:
        raise kept_by_provider(f"{field}.file_id")
    refuse_long_caches(part, f"{field}.")


def _tools(owner: JsonObject, field: str) -> tuple[str, ...]:
    """Return the names of the caller's functions; tools that the provider runs have fees, and are refused."""
    names: list[str] = []
    for index, tool in enumerate(listed(owner, "tools", TOOLS_MAX)):
        place = f"{field}[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(kind, str) or kind not in TOOL_KINDS:
            raise unpriced(place, "only functions of the caller have a price")
        names += _tools(tool, f"{place}.tools") if kind == "namespace" else [text(tool, "name", f"{place}.name")]
    return tuple(names)
