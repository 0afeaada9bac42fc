"""How many tokens a request can cost at most, whichever way it goes, and the limit that keeps this true. Pure.

Characters divided by four are no bound (tokens of emoji are up to 11 times that); every token of a byte-level
vocabulary has at least one byte, so UTF-8 bytes are. That other vocabularies keep to it is assumed; a provider that
bills more than was held is recorded as a breach, by the ledger. What a token costs is the ledger's word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.policies import Policy
from mesh.errors import InvalidArgument, invalid

OUTPUT_TOKENS_DEFAULT = 4_096  # when the client names no limit
OUTPUT_TOKENS_LEAST = 16  # fewer are of no use to a caller that takes a clamp
MOCK_PROVIDER, OPENAI, ANTHROPIC = "mock", "openai", "anthropic"
MOCK_BYTES_PER_TOKEN = 4
# The most that one image comes to. OpenAI: tiles of its costliest small models, patches of its newest at most
# (platform.openai.com, Images and vision); Anthropic: 2,576 pixels a side at 28 x 28 a token, with room
# (docs.anthropic.com, Vision). Others publish none.
IMAGE_TOKENS = {OPENAI: 16_384, ANTHROPIC: 10_000}
TILED = re.compile(r"^gpt-4o-mini")
TILED_IMAGE_TOKENS = 48_169  # 2,833 and 8 tiles of 5,667
PROMPT_FIELDS = {
    Dialect.CHAT: "messages",
    Dialect.MESSAGES: "messages",
    Dialect.RESPONSES: "input",
    Dialect.EMBEDDINGS: "input",
}


@dataclass(frozen=True, slots=True)
class Model:
    """What a bound needs to know of a model.

    `context_tokens` is what its provider takes and no more, or where `longer_unpriced` what its price holds for: longer
    prompts are served, at rates that nobody here knows.
    """

    provider: str
    name: str
    context_tokens: int
    output_tokens_max: int
    longer_unpriced: bool = False


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


def bound(request: Request, ways: Sequence[tuple[Model, Size]], policy: Policy, *, clamp: bool) -> Bound:
    """Bound a request over every way that it may go; `clamp` false for all or nothing."""
    field = PROMPT_FIELDS[request.dialect]
    input_tokens = max(input_bound(size, model, field) for model, size in ways)
    if not request.generates:
        return Bound(input_tokens, 1, 1, 1)  # the least that a hold may be of; such models have no price for output
    wanted = _wanted(request, ways, policy, input_tokens)
    if request.output_tokens_least > wanted:
        raise invalid("max_tokens", f"{wanted} tokens are allowed, and this needs {request.output_tokens_least}")
    least = max(min(wanted, OUTPUT_TOKENS_LEAST), request.output_tokens_least)
    return Bound(input_tokens, wanted, least if clamp else wanted, request.choices)


def input_bound(size: Size, model: Model, field: str = "messages") -> int:
    """Return the most input tokens that a request of this size can be billed; `field` is what an error names.

    A provider refuses what is longer than its model's window, so the window bounds whatever else does not.
    """
    window = model.context_tokens or None
    tokens = _tokens(size, model)
    if tokens is not None and (window is None or tokens <= window):
        return tokens
    if tokens is None and (window is None or model.longer_unpriced):
        text = f"what this costs {model.name} has no known bound"
        raise InvalidArgument("UNBOUNDED_REQUEST", text, field=field)
    if tokens is not None and (model.longer_unpriced or model.provider == MOCK_PROVIDER):  # the mock's count is exact
        text = f"this may be {tokens} tokens; {model.name} takes, or has a price for, {window}"
        raise InvalidArgument("CONTEXT_LENGTH_EXCEEDED", text, field=field)
    return window or 0


def may_be_refused(size: Size, model: Model) -> bool:
    """Return whether a request may be longer than what the model's provider takes, as far as its size tells."""
    tokens = _tokens(size, model)
    return tokens is not None and 0 < model.context_tokens < tokens


def mock_prompt_tokens(size: Size) -> int:
    """Return what the mock models count: a token for every 4 bytes of all text, rounded up."""
    return -(-size.text_bytes // MOCK_BYTES_PER_TOKEN)


def _tokens(size: Size, model: Model) -> int | None:
    """Return the bound of a size at one model; None where only its context window is one."""
    if model.provider == MOCK_PROVIDER:
        return mock_prompt_tokens(size)
    if not size.bounded:
        return None
    tokens = size.tokens
    if size.images:
        each = TILED_IMAGE_TOKENS if TILED.match(model.name) else IMAGE_TOKENS.get(model.provider)
        if each is None:
            return None
        tokens += size.images * each
    return tokens if model.provider == OPENAI else tokens + size.foreign_tokens


def _wanted(request: Request, ways: Sequence[tuple[Model, Size]], policy: Policy, input_tokens: int) -> int:
    limits = [max(model.output_tokens_max for model, _ in ways), request.max_tokens or OUTPUT_TOKENS_DEFAULT]
    if policy.max_tokens_per_request is not None:
        limits.append(_each(policy.max_tokens_per_request, request.choices))
    if (per_minute := policy.tokens_per_minute) is not None:
        limits.append(max(1, (per_minute - input_tokens) // request.choices))
    return min(limit for limit in limits if limit > 0)


def _each(tokens: int, choices: int) -> int:
    """Share what a policy allows among the choices, which get a token each at least."""
    if choices > tokens:
        raise invalid("n", f"a policy allows {tokens} tokens a request, fewer than one for each choice")
    return tokens // choices
