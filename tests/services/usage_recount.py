"""Usage made up for tests of reports, and the same reports counted from its rows in plain Python."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg

KEYS = ("key_a", "key_b", "key_c")
OUTCOMES = ("ok", "ok", "ok", "ok", "client_gone", "upstream_error", "upstream_cut")
STATUSES = {"ok": 200, "client_gone": 499, "upstream_error": 502, "upstream_cut": 200}


@dataclass(frozen=True)
class Used:
    """One row of usage, its columns in the order of the table."""

    organization_id: str
    seq: int
    request_id: str
    path: tuple[str, ...]
    agent_id: str
    api_key_id: str
    end_user: str
    provider: str
    model: str
    price_id: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charged_micros: int
    ceiling_micros: int
    breach_micros: int
    estimated: bool
    outcome: str
    http_status: int
    latency_ms: int
    overhead_ms: int
    first_token_ms: int
    streamed: bool
    usage_source: str
    attempts: int
    dialect: str
    held_at: datetime
    used_at: datetime

    @property
    def tokens(self) -> int:
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


def seeded(seed: str | int) -> random.Random:
    """Return chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311


def made_up(
    rng: random.Random, paths: Sequence[tuple[str, ...]], times: Iterable[datetime], seq: int = 0
) -> list[Used]:
    """Make usage at these times up, numbered from `seq` + 1 on."""
    return [_row(rng, rng.choice(paths), at, number) for number, at in enumerate(sorted(times), seq + 1)]


def _row(rng: random.Random, path: tuple[str, ...], at: datetime, seq: int) -> Used:
    outcome = rng.choice(OUTCOMES)
    return Used(
        organization_id=path[0],
        seq=seq,
        request_id=f"r{seq}",
        path=path,
        agent_id=path[-1],
        api_key_id=rng.choice(KEYS),
        end_user=rng.choice(("", "ann", "bob", "eve")),
        provider=rng.choice(("mock", "other")),
        model=rng.choice(("m1", "m2")),
        price_id="p",
        input_tokens=rng.randrange(1000),
        cached_input_tokens=rng.randrange(1000),
        cache_write_tokens=rng.randrange(1000),
        output_tokens=rng.randrange(1000),
        reasoning_tokens=rng.randrange(1000),
        charged_micros=rng.randrange(10**6),
        ceiling_micros=10**6,
        breach_micros=rng.choice((0, 0, 7)),
        estimated=rng.random() < 0.2,
        outcome=outcome,
        http_status=STATUSES[outcome],
        latency_ms=rng.randrange(20_000),
        overhead_ms=rng.randrange(9),
        first_token_ms=rng.choice((0, 150, 900)),
        streamed=True,
        usage_source="reported",
        attempts=1,
        dialect="messages",
        held_at=at,
        used_at=at,
    )


def moments(rng: random.Random, start: datetime, end: datetime, count: int) -> list[datetime]:
    """Choose times, some of them on the very edge of a slot."""
    span = (end - start) // timedelta(microseconds=1)
    found = [start + rng.randrange(span) * timedelta(microseconds=1) for _ in range(count)]
    return [
        at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0) if rng.random() < 0.1 else at for at in found
    ]


async def write(connection: asyncpg.Connection, rows: Sequence[Used]) -> None:
    """Put usage into the ledger's table, past the ledger."""
    columns = [field.name for field in fields(Used)]
    await connection.copy_records_to_table("usage", records=[astuple(row) for row in rows], columns=columns)


def within(rows: Iterable[Used], node: str, start: datetime, end: datetime) -> list[Used]:
    """Return a node's usage of a period."""
    return [row for row in rows if node in row.path and start <= row.used_at < end]


def series(rows: Iterable[Used], begun: Sequence[datetime]) -> list[list[Used]]:
    """Tell usage apart by the steps of a trend, whose beginnings are known."""
    found: list[list[Used]] = [[] for _ in begun]
    for row in rows:
        found[max(number for number, at in enumerate(begun) if at <= row.used_at)].append(row)
    return found


def labels(rows: Iterable[Used], zone: str, shown: str) -> dict[str, int]:
    """Sum charges up by what the zone's clocks showed."""
    found: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        found[row.used_at.astimezone(ZoneInfo(zone)).strftime(shown)] += row.charged_micros
    return dict(found)


def activity(rows: Iterable[Used], zone: str) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Sum requests, tokens and charges up by weekday and hour of the zone."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for row in rows:
        local = row.used_at.astimezone(ZoneInfo(zone))
        cell = (local.isoweekday(), local.hour)
        requests, tokens, charged = found.get(cell, (0, 0, 0))
        found[cell] = (requests + 1, tokens + row.tokens, charged + row.charged_micros)
    return found


def below(prefix: str, node: str) -> Callable[[Used], list[str]]:
    """Return who of a kind of node stands below `node` in a row."""
    return lambda row: [part for part in row.path[row.path.index(node) + 1 :] if part.startswith(f"{prefix}_")]


def ranking(rows: Iterable[Used], names: Callable[[Used], list[str]]) -> dict[str, tuple[int, int, int]]:
    """Sum requests, tokens and charges up by name."""
    found: dict[str, tuple[int, int, int]] = {}
    for row in rows:
        for name in names(row):
            requests, tokens, charged = found.get(name, (0, 0, 0))
            found[name] = (requests + 1, tokens + row.tokens, charged + row.charged_micros)
    return found


def day(text: str) -> datetime:
    """Read a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
