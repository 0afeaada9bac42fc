"""Append-only facts about credits: transfers, holds, budgets, prices, usage, audit. It calls nobody."""
