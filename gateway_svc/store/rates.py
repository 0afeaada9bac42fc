"""The buckets of the rate limits as they are kept in Valkey: one script for all that one organization's requests do.

A bucket is a string `level:at:since`: what is in it, in units of `gateway_svc.limits`, at which millisecond, and since
when it has not been empty; the key goes when the bucket is empty. Whatever happens to a limit, a level stays the tokens
that it stands for: they leave at the new limit's pace, and no later than they would have at the old one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import orjson
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway_svc.limits import FULL_MINUTES_MAX, MINUTE_MS, Limit
from mesh.cache import OUTAGES

# KEYS: buckets. ARGV[1]: operations in their order, each [taken_ms, bucket, limit, amount, bucket, limit, amount, …].
# With taken_ms 0 one is a take, of all its amounts or of none; else it corrects the take of that millisecond.
# Answers the time, and for each take 1 or 0 and the levels that it found.
SCRIPT = f"""
local MINUTE_MS, FULL_MINUTES_MAX, EXACT_MAX = {MINUTE_MS}, {FULL_MINUTES_MAX}, 9007199254740991
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local buckets = {{}}
for index, text in ipairs(redis.call('MGET', unpack(KEYS))) do
  local level, at, since = string.match(text or '', '^(%d+):(%d+):(%d+)$')
  buckets[index] = {{level = tonumber(level or 0), at = tonumber(at or now), since = tonumber(since or now)}}
end

local function level_now(bucket, limit)
  return math.max(0, bucket.level - math.max(0, now - bucket.at) * limit)
end

local function fill(bucket, limit, before, after)
  if before == 0 then bucket.since = now end
  bucket.level, bucket.at, bucket.limit = after, now, limit
end

local answer = {{string.format('%.0f', now)}}
local function take(operation)
  local granted, levels = true, {{}}
  for at = 2, #operation, 3 do
    local limit = operation[at + 1]
    local level = level_now(buckets[operation[at]], limit)
    if level + operation[at + 2] * MINUTE_MS > limit * MINUTE_MS then granted = false end
    levels[at] = level
  end
  answer[#answer + 1] = granted and '1' or '0'
  for at = 2, #operation, 3 do
    answer[#answer + 1] = string.format('%.0f', levels[at])
    if granted then
      fill(buckets[operation[at]], operation[at + 1], levels[at], levels[at] + operation[at + 2] * MINUTE_MS)
    end
  end
end

local function correct(operation)
  for at = 2, #operation, 3 do
    local bucket, limit, units = buckets[operation[at]], operation[at + 1], operation[at + 2] * MINUTE_MS
    local level = level_now(bucket, limit)
    if units > 0 then
      local most = math.min(limit * MINUTE_MS * FULL_MINUTES_MAX, EXACT_MAX)
      fill(bucket, limit, level, math.max(level, math.min(level + units, most)))
    elseif level > 0 and bucket.since <= operation[1] then
      -- Of a bucket that was empty meanwhile nothing is left that could be given back.
      fill(bucket, limit, level, math.max(0, level + units))
    end
  end
end

for _, operation in ipairs(cjson.decode(ARGV[1])) do
  if operation[1] == 0 then take(operation) else correct(operation) end
end
for index, bucket in ipairs(buckets) do
  if bucket.limit and bucket.level > 0 then
    local text = string.format('%.0f:%.0f:%.0f', bucket.level, bucket.at, bucket.since)
    local empty_ms = math.min(math.ceil(bucket.level / bucket.limit), FULL_MINUTES_MAX * MINUTE_MS)
    redis.call('SET', KEYS[index], text, 'PX', string.format('%.0f', empty_ms))
  elseif bucket.limit then
    redis.call('DEL', KEYS[index])
  end
end
return table.concat(answer, ' ')
"""
DIGEST = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()  # by which Valkey knows a script


@dataclass(frozen=True, slots=True)
class Operation:
    """What a request does to the buckets of its limits: a take, or with `taken_ms` a correction of that take."""

    organization_id: str
    limits: tuple[Limit, ...]
    amounts: tuple[int, ...]
    taken_ms: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """An operation that was done, at which time of Valkey's clock; a take was granted or not at the levels it found."""

    at_ms: int
    granted: bool
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """An operation without an answer: it may or may not have been done."""

    error: str


Outcome: TypeAlias = "Answered | Lost"


async def run(connection: AbstractConnection, operations: Sequence[Operation]) -> list[Outcome]:
    """Do operations in their order, all of one organization in one script; nothing is ever sent a second time."""
    groups: dict[str, list[int]] = {}
    for index, operation in enumerate(operations):
        groups.setdefault(operation.organization_id, []).append(index)
    commands = [_command([operations[index] for index in indices]) for indices in groups.values()]
    replies = await _replies(connection, [_packed(b"EVALSHA", DIGEST, *command) for command in commands])
    unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        again = await _replies(connection, [_packed(b"EVAL", SCRIPT, *commands[number]) for number in unknown])
        for number, reply in zip(unknown, again, strict=True):
            replies[number] = reply
    outcomes: list[Outcome] = [Lost("")] * len(operations)
    for indices, reply in zip(groups.values(), replies, strict=True):
        answers = _outcomes(reply, [operations[index] for index in indices])
        for index, outcome in zip(indices, answers, strict=True):
            outcomes[index] = outcome
    return outcomes


def _command(operations: Iterable[Operation]) -> tuple[str | bytes, ...]:
    """Return the number of keys, the keys and the argument."""
    numbers: dict[str, int] = {}  # Lua counts from 1
    rows: list[list[int]] = []
    for operation in operations:
        row = [operation.taken_ms]
        for limit, amount in zip(operation.limits, operation.amounts, strict=True):
            row += (numbers.setdefault(limit.key, len(numbers) + 1), limit.per_minute, amount)
        rows.append(row)
    return str(len(numbers)), *numbers, orjson.dumps(rows)


def _packed(*arguments: str | bytes) -> bytes:
    """Write a command as the protocol has it (RESP): the client's own way takes five times as long."""
    texts = [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
    return b"*%d\r\n" % len(texts) + b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])


async def _replies(connection: AbstractConnection, commands: Sequence[bytes]) -> list[str | Exception]:
    """Send all commands at once; once the connection fails, each that is unanswered has that failure as its reply."""
    replies: list[str | Exception] = []
    try:
        await connection.send_packed_command(b"".join(commands))
        while len(replies) < len(commands):
            try:
                replies.append(cast("str", await connection.read_response()))
            except ResponseError as error:
                replies.append(error)
    except (*OUTAGES, RedisError) as error:
        replies += [error] * (len(commands) - len(replies))
    return replies


def _outcomes(reply: str | Exception, operations: Sequence[Operation]) -> list[Outcome]:
    if isinstance(reply, Exception):
        return [Lost(type(reply).__name__)] * len(operations)
    at_ms, *numbers = map(int, reply.split())
    outcomes: list[Outcome] = []
    start = 0
    for operation in operations:
        if operation.taken_ms:
            outcomes.append(Answered(at_ms, granted=True, levels=()))
        else:
            end = start + 1 + len(operation.limits)
            outcomes.append(Answered(at_ms, numbers[start] == 1, tuple(numbers[start + 1 : end])))
            start = end
    return outcomes
