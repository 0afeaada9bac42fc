"""What a route may say: an alias that names no model, and targets that can be asked. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from gateway_svc.routing import Target
from mesh.errors import AlreadyExists, InvalidArgument, invalid

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,198}")
TARGETS_MAX = 8
WEIGHT_MAX, TIER_MAX = 1_000, 7
TOKENS_MAX = 100_000_000
COMPATIBLE = ("openai",)  # providers at whose own address an organization may serve models of its own

Priced = Collection[tuple[str, str]]  # (provider, model)


def checked_alias(name: str, priced: Priced) -> str:
    """Return a name as it is kept; InvalidArgument for one that no model could have, or that one with a price has."""
    if not MODEL_NAME.fullmatch(name):
        raise invalid("alias", "must have 1 to 199 letters, digits or ._:/@-, a letter or digit first")
    if any(name in (model, f"{provider}/{model}") for provider, model in priced):
        raise AlreadyExists("ALIAS_NAMES_MODEL", f"{name} is the name of a model that has a price", field="alias")
    return name


def checked_targets(targets: Sequence[Target], priced: Priced) -> tuple[Target, ...]:
    """Return targets as they are kept; InvalidArgument for what can't be asked."""
    if not 1 <= len(targets) <= TARGETS_MAX:
        raise invalid("targets", f"must hold 1 to {TARGETS_MAX} targets")
    if len({(target.provider, target.model) for target in targets}) < len(targets):
        raise invalid("targets", "must name no model twice")
    for target in targets:
        _check(target, priced)
    return tuple(targets)


def _check(target: Target, priced: Priced) -> None:
    if not 0 <= target.weight <= WEIGHT_MAX:
        raise invalid("targets.weight", f"must be 0 to {WEIGHT_MAX}")
    if not 0 <= target.tier <= TIER_MAX:
        raise invalid("targets.tier", f"must be 0 to {TIER_MAX}")
    if not MODEL_NAME.fullmatch(target.model):
        raise invalid("targets.model", "must be a model's name")
    if (target.provider, target.model) in priced:
        if target.limits is not None:
            raise invalid("targets.context_tokens", f"must be absent: the price list says it of {target.model}")
    elif target.limits is None or target.provider not in COMPATIBLE:
        text = (
            f"{target.provider[:100]}/{target.model} has no price; {' or '.join(COMPATIBLE)} takes others with limits"
        )
        raise InvalidArgument("MODEL_NOT_PRICED", text, field="targets.model")
    else:
        _check_limits(target.limits.context_tokens, target.limits.output_tokens_max)


def _check_limits(context_tokens: int, output_tokens_max: int) -> None:
    if not 1 <= context_tokens <= TOKENS_MAX:
        raise invalid("targets.context_tokens", f"must be 1 to {TOKENS_MAX}")
    if not 1 <= output_tokens_max <= context_tokens:
        raise invalid("targets.output_tokens_max", "must be 1 to context_tokens")
