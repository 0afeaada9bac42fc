"""How many tokens a request can cost at most, and the limit that is written upstream so that this stays true. Pure.

Every field of a request has a class. One that nobody classed is unbounded: the input is then bounded by the model's
context window alone. Characters divided by four are no bound (tokens of emoji are up to 11 times that); every token of
a byte-level vocabulary has at least one byte, so UTF-8 bytes are. What a token costs is the ledger's word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import orjson

from gateway_svc.chat import ChatRequest, Json, JsonObject, texts_of
from gateway_svc.policies import Policy
from mesh.errors import InvalidArgument, invalid

OUTPUT_TOKENS_DEFAULT = 4_096  # when the client names no limit
OUTPUT_TOKENS_LEAST = 16  # fewer are of no use to a caller that takes a clamp
MESSAGE_TOKENS = 16  # what a provider's template adds to each message, with room
TOOL_TOKENS = 32
REQUEST_TOKENS = 64
SYSTEM_TOKENS = 1_024  # Anthropic adds a prompt of its own, up to 700 tokens, for tools and for formats
MOCK_PROVIDER = "mock"
MOCK_BYTES_PER_TOKEN = 4
COMPLETION_TOKENS_ONLY = re.compile(r"^(o[1-9]|gpt-[5-9])")  # models that refuse `max_tokens`


class FieldClass(Enum):
    """What a field can do to the cost of a request."""

    NEUTRAL = auto()
    BYTES = auto()  # becomes input tokens, at most one a byte
    COUNTED = auto()  # has its own place in the bound
    UNPRICED = auto()  # would cost what no price covers: refused


NEUTRAL, BYTES, COUNTED, UNPRICED = FieldClass
FIELDS: dict[str, FieldClass] = {
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
    "web_search_options": UNPRICED,
    "audio": UNPRICED,
    "prediction": UNPRICED,  # rejected predictions are billed beside the limit
    # What compatible servers know beside OpenAI: other models than the one that is allowed, limits that are not ours,
    # tools and searches with fees, and addresses and keys of the caller's choice.
    **dict.fromkeys(
        (
            *("models", "fallbacks", "route", "provider", "api_base", "base_url", "api_key", "extra_body"),
            *("best_of", "use_beam_search", "num_choices", "candidate_count", "max_output_tokens", "max_new_tokens"),
            *("max_tokens_to_sample", "n_predict", "num_predict", "thinking_budget"),
            *("plugins", "search_parameters", "enable_search", "web_search"),
        ),
        UNPRICED,
    ),
}
PRICED_TIERS = (None, "auto", "default", "flex")  # others cost more than the list says
TEXT_PARTS = ("text", "refusal")
UNPRICED_PARTS = ("input_audio", "audio", "input_video", "video_url")  # their tokens cost more than those of text
MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call", "reasoning_content"}
)


@dataclass(frozen=True, slots=True)
class Model:
    """What a bound needs to know of a model."""

    provider: str
    name: str
    context_tokens: int
    output_tokens_max: int


@dataclass(frozen=True, slots=True)
class Bound:
    """What is asked of the ledger; output tokens are for each choice."""

    input_tokens_max: int
    output_tokens_wanted: int
    output_tokens_min: int
    choices: int

    @property
    def tokens(self) -> int:
        """Return the most tokens that the request may come to, in and out."""
        return self.input_tokens_max + self.output_tokens_wanted * self.choices


def bound(chat: ChatRequest, model: Model, policy: Policy, *, clamp: bool) -> Bound:
    """Bound a request; InvalidArgument for what has no price, `clamp` false for all or nothing."""
    _refuse_unpriced(chat.document)
    _refuse_unpriced_parts(chat.messages)
    input_tokens = input_bound(chat, model)
    limits = [model.output_tokens_max, chat.max_tokens or OUTPUT_TOKENS_DEFAULT]
    if policy.max_tokens_per_request is not None:
        limits.append(_each(policy.max_tokens_per_request, chat.choices))
    if (per_minute := policy.tokens_per_minute) is not None:
        limits.append(max(1, (per_minute - input_tokens) // chat.choices))
    wanted = min(limit for limit in limits if limit > 0)
    return Bound(
        input_tokens_max=input_tokens,
        output_tokens_wanted=wanted,
        output_tokens_min=min(wanted, OUTPUT_TOKENS_LEAST) if clamp else wanted,
        choices=chat.choices,
    )


def _each(tokens: int, choices: int) -> int:
    """Share what a policy allows among the choices, which get a token each at least."""
    if choices > tokens:
        raise invalid("n", f"a policy allows {tokens} tokens a request, fewer than one for each choice")
    return tokens // choices


def input_bound(chat: ChatRequest, model: Model) -> int:
    """Return the most input tokens that a request can be."""
    window = model.context_tokens or None
    if model.provider == MOCK_PROVIDER:
        tokens = mock_prompt_tokens(chat)
    elif _is_bounded(chat):
        tokens = _bytes_bound(chat, model.provider)
    elif window is not None:
        return window
    else:
        raise InvalidArgument("UNBOUNDED_REQUEST", f"what this costs {model.name} has no known bound")
    if window is not None and tokens > window:
        # The window is the model's, or where the listed price ends if it has no tier for longer prompts.
        text = f"this may be {tokens} tokens; {model.name} takes, or has a price for, {window}"
        raise InvalidArgument("CONTEXT_LENGTH_EXCEEDED", text, field="messages")
    return tokens


def mock_prompt_tokens(chat: ChatRequest) -> int:
    """Return what the mock models count: a token for every 4 bytes of all message text, rounded up."""
    size = sum(len(text.encode(errors="replace")) for message in chat.messages for text in texts_of(message))
    return -(-size // MOCK_BYTES_PER_TOKEN)


def upstream_body(chat: ChatRequest, model: Model, output_tokens: int) -> JsonObject:
    """Return the request as it goes to a provider: with our limit in it, and with usage asked for."""
    document = {name: value for name, value in chat.document.items() if name != "max_tokens"}
    uses_completion = "max_completion_tokens" in chat.document or COMPLETION_TOKENS_ONLY.match(model.name) is not None
    document["max_completion_tokens" if uses_completion else "max_tokens"] = output_tokens
    if chat.stream:
        options = chat.document.get("stream_options")
        document["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return document


def _refuse_unpriced(document: JsonObject) -> None:
    for name, value in document.items():
        if value is not None and FIELDS.get(name) is UNPRICED:
            raise InvalidArgument("UNPRICED_FIELD", f"{name}: no price covers it", field=name)
    if document.get("service_tier") not in PRICED_TIERS:
        raise InvalidArgument("UNPRICED_FIELD", "service_tier: no price covers it", field="service_tier")
    if document.get("modalities") not in (None, ["text"]):
        raise InvalidArgument("UNPRICED_FIELD", "modalities: only text has a price", field="modalities")
    _refuse_foreign_tools(document.get("tools"))


def _refuse_unpriced_parts(messages: Sequence[JsonObject]) -> None:
    """Let no sound or film pass, nor a reference to one that the provider keeps."""
    for index, message in enumerate(messages):
        if message.get("audio") is not None:
            raise _unpriced_sound(f"messages[{index}].audio")
        for place, part in enumerate(_parts(message.get("content"))):
            if isinstance(part, dict) and part.get("type") in UNPRICED_PARTS:
                raise _unpriced_sound(f"messages[{index}].content[{place}]")


def _unpriced_sound(field: str) -> InvalidArgument:
    return InvalidArgument("UNPRICED_FIELD", f"{field}: no price covers sound or film", field=field)


def _refuse_foreign_tools(tools: Json) -> None:
    """Let nothing but functions of the caller pass: tools that the provider runs have fees."""
    if tools is None:
        return
    if not isinstance(tools, list):
        raise invalid("tools", "must be a list")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
            field = f"tools[{index}]"
            raise InvalidArgument("UNPRICED_FIELD", f"{field}: only functions of the caller have a price", field=field)


def _is_bounded(chat: ChatRequest) -> bool:
    if any(name not in FIELDS for name in chat.document):
        return False
    if any(name not in MESSAGE_FIELDS for message in chat.messages for name in message):
        return False
    return all(_is_text(part) for message in chat.messages for part in _parts(message.get("content")))


def _parts(content: Json) -> list[Json]:
    return content if isinstance(content, list) else []


def _is_text(part: Json) -> bool:
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS


def _bytes_bound(chat: ChatRequest, provider: str) -> int:
    tokens = REQUEST_TOKENS + MESSAGE_TOKENS * len(chat.messages) + len(orjson.dumps(chat.messages))
    for name, value in chat.document.items():
        if value is not None and FIELDS[name] is BYTES:
            tokens += len(orjson.dumps(value)) + (TOOL_TOKENS * len(value) if isinstance(value, list) else 0)
            if provider != "openai":
                tokens += SYSTEM_TOKENS
    return tokens
