"""Secrets that are easily recognized, everything that could make a gateway tell them, and all that it then told."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import logging
import re
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from redis.asyncio import Redis

from gateway_svc import service
from mesh.secret import Secret
from mesh.telemetry import traces
from mesh.telemetry.logs import JsonFormatter
from mesh.testing import House
from tests.fakes.collector import Collector, collecting
from tests.services.edge_running import Asker, RunningEdge, edge_running
from tests.services.gateway_running import Answer, RunningGateway
from tests.services.identity_running import fresh
from tests.services.ledger_running import owner

PLATFORM_OPENAI = "sk-canary-platform-4f1d9a7be2c05388"
PLATFORM_ANTHROPIC = "sk-ant-canary-77c1e0b35a9d2f64"
OWN_OPENAI = 'canary/own+key="b81d\\6e0f39c2a754~'  # no vendor's shape, and every letter that JSON or a URL escapes
OWN_ANTHROPIC = "canary:anthropic/own%2Bkey==9d04c7e6b1f8"
OWN_ELSEWHERE = "canary.elsewhere/0c5e8812af36d947"
SECRETS = (PLATFORM_OPENAI, PLATFORM_ANTHROPIC, OWN_OPENAI, OWN_ANTHROPIC, OWN_ELSEWHERE)
WHOLE_LETTERS = 4  # of base64, which hold no neighbour's bits once as many are cut from each end
TAIL = slice(-20, -4)  # a piece that nobody may show: the last four letters are a credential's hint

OPENAIS, ANTHROPICS = "gpt-6.2-sol", "claude-sonnet-5-5"
TRIES = 5
# What the gateway itself refuses for a moment, as where the machine stands still for a second.
OURS = re.compile(rb'"(identity|accounting|credentials?|database|policies|rate_limits)_unavailable"')
ORDERS = (
    "",
    *(f"status={status}" for status in (302, 400, 401, 403, 404, 408, 429, 500, 503, 529)),
    *(f"status={status};echo={echo}" for status in (400, 403, 500) for echo in ("base64", "hex", "url", "slashes")),
    *(f"fail={number};echo={echo}" for number in (0, 3) for echo in ("", "base64", "hex", "url", "slashes")),
    *("status=429;leak", "status=400;nested", "die=0", "die=3", "clean-eof", "unstreamed"),
)


def needles(secret: str) -> dict[str, bytes]:
    """Return what a secret looks like wherever somebody wrote it down, in whole or in a telling part."""
    found = {
        "plain": secret,
        "part": secret[TAIL],
        "hex": secret.encode().hex(),
        "url": quote(secret, safe=""),
        "json": json.dumps(secret)[1:-1],
        "php": json.dumps(secret)[1:-1].replace("/", "\\/"),
    }
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + secret.encode()).decode()[WHOLE_LETTERS:-WHOLE_LETTERS]
        found |= {f"base64+{shift}": text, f"base64url+{shift}": text.translate(str.maketrans("+/", "-_"))}
    return {form: text.encode() for form, text in found.items()}


def leaks(texts: Sequence[bytes], secrets: Sequence[str]) -> list[tuple[str, str, bytes]]:
    """Return each secret that is in a text, in which form, and what is around it."""
    return [
        (secret, form, text[max(0, at - 60) : at + 20])
        for secret in secrets
        for form, needle in needles(secret).items()
        for text in texts
        if (at := text.find(needle)) >= 0
    ]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request, and the order to the provider that it carries."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


def attempts() -> Iterator[Attempt]:
    """Give every order in every dialect over every other, streamed and not, and some of them to be replayed."""
    said: list[dict[str, Any]] = [{"role": "user", "content": "one two"}]
    for order, stream, model in itertools.product(ORDERS, (False, True), (OPENAIS, ANTHROPICS)):
        user = f"x:{order}"
        common: dict[str, Any] = {"model": model, "stream": stream}
        chat = {**common, "messages": said, "max_tokens": 32, "user": user}
        yield Attempt("/v1/chat/completions", chat, {"idempotency-key": fresh("once")})
        yield Attempt("/v1/responses", {**common, "input": "one two", "max_output_tokens": 32, "user": user}, {})
        messages = {**common, "messages": said, "max_tokens": 32, "metadata": {"user_id": user}}
        yield Attempt("/v1/messages", messages, {"idempotency-key": fresh("once")})
        if model == OPENAIS and not stream:
            yield Attempt("/v1/embeddings", {"model": model, "input": "one two", "user": user}, {})
    yield Attempt("/v1/messages/count_tokens", {"model": ANTHROPICS, "messages": said}, {})


@dataclass
class Told:
    """Everything that anybody outside could have read."""

    gateway: RunningGateway
    edge: RunningEdge
    collector: Collector
    log: io.StringIO
    keys: list[str] = field(default_factory=list)  # of agents, and access tokens
    answers: list[bytes] = field(default_factory=list)
    graphql: list[bytes] = field(default_factory=list)
    asked: int = 0

    def heard(self, answer: Answer) -> None:
        self.answers += [answer.body, "\n".join(f"{name}: {text}" for name, text in answer.headers.items()).encode()]

    async def ask(self, key: str, attempt: Attempt) -> Answer:
        """Make one attempt, again where the gateway itself could not take it."""
        tries_left = TRIES
        while True:
            answer = await self.gateway.ask(key, attempt.body, attempt.path, **attempt.headers)
            self.heard(answer)
            tries_left -= 1
            if OURS.search(answer.body) is None or not tries_left:
                return answer
            await asyncio.sleep(0.5)

    async def ask_everything(self, key: str) -> None:
        """Make every attempt with one key, a few at a time."""
        self.keys.append(key)
        room = asyncio.Semaphore(8)

        async def ask(attempt: Attempt) -> None:
            async with room:
                answer = await self.ask(key, attempt)
                self.asked += 1
                if attempt.headers and answer.status < 400:
                    self.heard(await self.gateway.ask(key, attempt.body, attempt.path, **attempt.headers))

        async with asyncio.TaskGroup() as group:
            for attempt in attempts():
                group.create_task(ask(attempt))


@contextmanager
def logging_everything() -> Generator[io.StringIO]:
    """Write down what every library and service logs, at the finest level, as services write it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@asynccontextmanager
async def tracing() -> AsyncGenerator[Collector]:
    """Send every span of this process to a collector."""
    async with collecting() as collector:
        provider = TracerProvider(resource=Resource.create({"service.name": "mandate-tests"}))
        exporter = OTLPSpanExporter(endpoint=f"http://{collector.address}", insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        patched = pytest.MonkeyPatch()
        patched.setattr(traces, "_tracer", provider.get_tracer("mandate"))
        try:
            yield collector
        finally:
            patched.undo()
            await asyncio.to_thread(provider.shutdown)


@asynccontextmanager
async def edge_of(gateway: RunningGateway, said: list[bytes]) -> AsyncGenerator[RunningEdge]:
    """Serve an edge before the gateway's mesh, and keep all that it says but for keys that it hands out."""

    async def keep(response: httpx.Response) -> None:
        body = await response.aread()
        said.append(re.sub(rb'"plaintext":\s*"[^"]*"', b"", body))
        said.append(str(response.headers).encode())

    mesh, parts = gateway.mesh, gateway.built.parts
    runtime = mesh.runtime
    async with mesh.house.channel("identity", runtime.identity_address, as_service="gateway") as identity:
        resolve = service.Resolver(parts.db, identity)
        async with mesh.house.channel("ledger", runtime.ledger_address, as_service="gateway") as ledger:
            registrations = service.registrations(parts.db, resolve, ledger)
            async with mesh.house.serving("gateway", registrations, parts.keys, resolve) as address:
                addresses = {
                    "identity": runtime.identity_address,
                    "vault": runtime.vault_address,
                    "ledger": runtime.ledger_address,
                    "gateway": address,
                }
                async with edge_running(mesh.house, addresses) as edge:
                    edge.client.event_hooks["response"].append(keep)
                    yield edge


async def keyed(asker: Asker, **secrets: str) -> tuple[str, str]:
    """Make an organization with money, provider keys of its own and an agent; return its id and the agent's key."""
    organization = await asker.organization()
    agent = await asker.agent(organization)
    bought = {"organizationId": organization, "micros": "1000000000000", "idempotencyKey": fresh()}
    await asker.made("purchaseCredits", "replayed", **bought)
    for provider, secret in secrets.items():
        name, _, address = provider.partition("_")
        at = {"baseUrl": "https://canary.invalid/v1"} if address else {}
        values = {"organizationId": organization, "provider": name, "secret": secret, "label": "ours", **at}
        await asker.made("addProviderCredential", "providerCredential { id hint label baseUrl }", **values)
    issued = await asker.made("issueApiKey", "plaintext", agentId=agent.id, name="laptop")
    return organization, issued["plaintext"]


async def dump(house: House) -> list[bytes]:
    """Return every row of every table of every schema, and every key and value of Valkey."""
    rows: list[bytes] = []
    async with owner(house) as connection:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for table in tables:
            found = await connection.fetch(f"SELECT t::text AS row FROM {table['name']} AS t")  # noqa: S608
            rows.append("\n".join([table["name"], *(row["row"] for row in found)]).encode())
    return rows + await valkey_dump(house.redis_url)


async def valkey_dump(url: Secret) -> list[bytes]:
    """Return all that Valkey holds, uncompressed."""
    readers = {b"string": "GET {}", b"hash": "HGETALL {}", b"list": "LRANGE {} 0 -1", b"set": "SMEMBERS {}"}
    readers |= {b"zset": "ZRANGE {} 0 -1 WITHSCORES"}
    async with Redis.from_url(url.reveal(), decode_responses=False) as redis:
        found: list[bytes] = []
        async for key in redis.scan_iter():
            kind: Any = await redis.type(key)
            command = readers[kind].split()
            value = await redis.execute_command(*(key if word == "{}" else word for word in command))
            found.append(key + b" " + repr(value).encode() + (value if isinstance(value, bytes) else b""))
        return found
