"""The names of an organization's own accounts; a budget's windows have accounts beside these. Pure."""

from __future__ import annotations

KINDS = frozenset(
    {"wallet", "revenue", "purchases", "promotions", "breakage", "adjustments", "suspense", "receivable", "breach"}
)
