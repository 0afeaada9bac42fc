"""The two ways in which models of Anthropic are told to think: as much as they see fit, or up to a budget. Pure.

Claude 4.6 and later take `adaptive`, which effort steers; the newest take nothing else. Those before know budgets alone
(Anthropic's guide to adaptive thinking).
"""

from __future__ import annotations

import re

from gateway_svc.dialects.reading import JsonObject, member

VERSION = re.compile(r"claude-(?:[a-z]+-)*(\d+)(?:[.-](\d{1,2}))?(?!\d)")
ADAPTIVE_SINCE = (4, 6)
BUDGET_TOKENS_LEAST = 1_024
SHARES = {"low": 0.25, "medium": 0.5}  # of the limit; the rest of the efforts leave a quarter for the answer
SHARE_MAX = 0.75


def suited(document: JsonObject, model: str, output_tokens: int) -> JsonObject:
    """Return a request whose adaptive thinking is a budget where the model knows no other way.

    Where the limit has no room for the least budget, there is no thinking: effort is a wish, and the limit is not.
    """
    thinking = member(document, "thinking")
    if thinking.get("type") != "adaptive" or not _knows_budgets_alone(model):
        return document
    suited = {name: value for name, value in document.items() if name not in ("thinking", "output_config")}
    output = member(document, "output_config")
    effort = output.get("effort")
    share = SHARES.get(effort, SHARE_MAX) if isinstance(effort, str) else SHARE_MAX
    if rest := {name: value for name, value in output.items() if name != "effort"}:
        suited["output_config"] = rest
    if output_tokens > BUDGET_TOKENS_LEAST:
        budget = max(BUDGET_TOKENS_LEAST, int(output_tokens * share))
        suited["thinking"] = {**thinking, "type": "enabled", "budget_tokens": budget}
    return suited


def _knows_budgets_alone(model: str) -> bool:
    found = VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) < ADAPTIVE_SINCE
