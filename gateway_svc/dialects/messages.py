"""Anthropic's Messages: a request read and checked, what it can cost, and how our limit is written into it. Pure.

Fields, blocks and tools are those of Anthropic's reference of `POST /v1/messages`, its betas among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
from gateway_svc.dialects.thinking import suited
from mesh.errors import InvalidArgument, invalid

MESSAGES_MAX = 10_000
MESSAGE_TOKENS = 16  # what the template adds to each message, with room
REQUEST_TOKENS = 64
CLIENT_TOOL_TOKENS = 2_000  # Anthropic's own description of a tool that the caller runs: 245 to 735, with room
CLIENT_TOOLS = ("bash_", "text_editor_", "memory_", "computer_")
TOOLSETS = ("computer_toolset_",)  # many tools at once, whose descriptions nobody states the size of
ROLES = ("user", "assistant", "system")
FILE_BLOCKS = ("container_upload",)
IMAGE_SOURCE = frozenset({"type", "media_type", "data", "url", "file_id"})
BOUNDED_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use", "tool_result"})
OUTPUT_CONFIG = frozenset({"effort", "format"})

FIELDS: Fields = {
    "model": COUNTED,
    "messages": COUNTED,
    "max_tokens": COUNTED,
    "stream": COUNTED,
    "thinking": COUNTED,  # counts against max_tokens, which must be above its budget
    "service_tier": COUNTED,
    "speed": COUNTED,  # "fast" has prices of its own
    "cache_control": COUNTED,
    "system": COUNTED,  # by its bytes, but with no prompt of Anthropic's own beside it, unlike those classed as BYTES
    "stop_sequences": COUNTED,
    "tools": BYTES,
    "output_config": BYTES,
    "output_format": BYTES,  # the beta's name for what is in output_config now
    "tool_choice": NEUTRAL,
    "temperature": NEUTRAL,
    "top_p": NEUTRAL,
    "top_k": NEUTRAL,
    "metadata": NEUTRAL,
    "inference_geo": UNPRICED,  # some regions cost a tenth more
    "container": UNPRICED,
    "mcp_servers": UNPRICED,
    "context_management": UNPRICED,  # a compaction is billed beside the limit
    "compaction": UNPRICED,
    "fallback_credit_token": UNPRICED,
    "billing_policy": UNPRICED,
    "thread": UNSERVED,  # what the vendor keeps of earlier requests may be another tenant's
    "diagnostics": UNSERVED,
    "user_profile_id": UNSERVED,
    "workspace_id": UNSERVED,
    "betas": UNSERVED,  # a header's content, which the gateway writes itself
    **FOREIGN,
    "n": UNPRICED,
    "max_completion_tokens": UNPRICED,
    "max_output_tokens": UNPRICED,
}


@dataclass(frozen=True, slots=True)
class Block:
    """One block of content and where it stands."""

    field: str
    members: JsonObject

    @property
    def kind(self) -> Json:
        """Return its type."""
        return self.members.get("type")


def parse(body: bytes) -> Request:
    """Read a request; InvalidArgument names the field that is wrong."""
    return read(document_of(body))


def read(document: JsonObject) -> Request:
    """Check a request that is JSON already; InvalidArgument names the field that is wrong."""
    model = model_of(document)
    stream = flag(document, "stream")
    _check_messages(document.get("messages"))
    refuse(document, FIELDS)
    if document.get("speed") not in (None, "standard"):
        raise unpriced("speed")
    max_tokens = whole(document, "max_tokens")
    for block in blocks_of(document):
        _check_block(block)
    refuse_long_caches(document)
    return Request(
        dialect=Dialect.MESSAGES,
        document=document,
        model=model,
        stream=stream,
        usage_wanted=True,
        max_tokens=max_tokens,
        output_tokens_least=_thinking_budget(document, max_tokens) + 1,
        tools=_tools(document),
        end_user=end_user(text(member(document, "metadata"), "user_id", "metadata.user_id")),
    )


def messages_of(document: JsonObject) -> list[JsonObject]:
    """Return the messages of a request that was read."""
    return [message for message in parts_of(document.get("messages")) if isinstance(message, dict)]


def blocks_of(document: JsonObject) -> Iterator[Block]:
    """Give every block of the system prompt and of the messages, with those inside results and documents."""
    yield from _blocks(document.get("system"), "system")
    for index, message in enumerate(messages_of(document)):
        yield from _blocks(message.get("content"), f"messages[{index}].content")


def size(document: JsonObject) -> Size:
    """Return what bounds the input of a request that was read."""
    tokens, foreign = tokens_of(document, FIELDS)
    images = image_bytes = text_bytes = 0
    is_bounded = bounded(document, FIELDS) and member(document, "output_config").keys() <= OUTPUT_CONFIG
    for content in (document.get("system"), *(message.get("content") for message in messages_of(document))):
        text_bytes += len(content.encode(errors="replace")) if isinstance(content, str) else 0
    for block in blocks_of(document):
        if block.kind == "image":
            images += 1
            image_bytes += _picture_bytes(block.members.get("source"))
        elif block.kind not in BOUNDED_BLOCKS:
            is_bounded = False
        elif block.kind == "text" and isinstance(said := block.members.get("text"), str):
            text_bytes += len(said.encode(errors="replace"))
    for tool in parts_of(document.get("tools")):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind.startswith(CLIENT_TOOLS):
            tokens += CLIENT_TOOL_TOKENS
            is_bounded = is_bounded and not kind.startswith(TOOLSETS)
    texts = sum(bytes_of(document.get(name)) for name in ("messages", "system", "stop_sequences"))
    tokens += REQUEST_TOKENS + MESSAGE_TOKENS * len(messages_of(document)) + texts - image_bytes
    return Size(tokens, foreign, images, text_bytes, is_bounded)


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:
    """Return the request as it goes to a provider: with our limit in it, and thinking as the model knows it."""
    return suited({**request.document, "model": model, "max_tokens": output_tokens}, model, output_tokens)


def _check_messages(value: Json) -> None:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES_MAX:
        raise invalid("messages", f"must be a list of 1 to {MESSAGES_MAX} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise invalid(f"messages[{index}]", "must be an object")
        if message.get("role") not in ROLES:
            raise invalid(f"messages[{index}].role", "must be user, assistant or system")
        if not isinstance(message.get("content"), str | list):
            raise invalid(f"messages[{index}].content", "must be a text or a list of blocks")


def _blocks(content: Json, field: str) -> Iterator[Block]:
    for index, block in enumerate(parts_of(content)):
        place = f"{field}[{index}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid(place, "must be a block with a type")
        yield Block(place, block)
        yield from _blocks(block.get("content"), f"{place}.content")
        source = block.get("source")
        if isinstance(source, dict):
            yield from _blocks(source.get("content"), f"{place}.source.content")


def _picture_bytes(source: Json) -> int:
    """Return how much of a request a picture itself is: it has a bound of its own, and all else counts."""
    match source:
        case {"type": "base64", "data": str(picture)} | {"type": "url", "url": str(picture)}:
            return bytes_of(picture)
        case _:
            return 0


def _check_block(block: Block) -> None:
    """Refuse what stands on the vendor's disks under a name that anybody may guess, and what nobody priced."""
    source = block.members.get("source")
    if block.kind == "image" and isinstance(source, dict) and (others := source.keys() - IMAGE_SOURCE):
        raise unpriced(f"{block.field}.source.{min(others)}", "an image's source holds no more than the image")
    if block.kind in FILE_BLOCKS or (isinstance(source, dict) and source.get("type") == "file"):
        field = f"{block.field}.source" if isinstance(source, dict) else block.field
        raise InvalidArgument("UNSUPPORTED_FIELD", f"{field}: the gateway does not serve files by id", field=field)
    refuse_long_caches(block.members, f"{block.field}.")


def _thinking_budget(document: JsonObject, max_tokens: int | None) -> int:
    thinking = member(document, "thinking")
    if thinking.get("type") != "enabled":
        return 0
    budget = whole(thinking, "budget_tokens", field="thinking.budget_tokens")
    if budget is None:
        raise invalid("thinking.budget_tokens", "must be given where thinking is enabled")
    if max_tokens is not None and budget >= max_tokens:
        raise invalid("thinking.budget_tokens", "must be less than max_tokens")
    return budget


def _tools(document: JsonObject) -> tuple[str, ...]:
    """Return the names of the tools that the caller runs; those that the provider runs have fees, and are refused."""
    names: list[str] = []
    for index, tool in enumerate(listed(document, "tools", TOOLS_MAX)):
        field = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid(field, "must be an object")
        kind = text(tool, "type", f"{field}.type")
        if kind not in ("", "custom") and not kind.startswith(CLIENT_TOOLS):
            raise unpriced(field, "only tools that the caller runs have a price")
        refuse_long_caches(tool, f"{field}.")
        names.append(text(tool, "name", f"{field}.name") or kind.partition("_")[0])
    return tuple(names)
