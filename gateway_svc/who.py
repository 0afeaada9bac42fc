"""Who is calling: digests of keys and access tokens to agents, kept while identity's watch proves that nothing changed.

An entry is usable for 700 ms after the last beat; without a beat each request asks identity itself, and where identity
does not answer nobody gets in. What makes a token good is in `access_tokens`; what an agent may ask for is not here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import grpc

from gateway_svc import access_tokens
from gateway_svc.access_tokens import AccessToken, Refused
from gateway_svc.calls import Calls, unless_cancelled_there
from mandate.identity.v1 import directory_pb2, keys_pb2, keys_pb2_grpc
from mesh import client
from mesh.clock import Clock, monotonic_ms
from mesh.errors import MeshError, PermissionDenied, Unauthenticated, Unavailable
from mesh.secret import Secret
from mesh.telemetry import logs
from mesh.tokens import KeySource

FRESH_MS = 700
ENTRIES_MAX = 50_000
NOBODIES_MAX = 10_000
NOBODY_MS = 2_000
TOKEN_MS_MAX = 5 * 60_000  # a signature is verified anew, since identity may have withdrawn the key
FILLS_MAX = 3
RESOLVE_MS = 2_000
BEAT_MS_MAX = 2_000  # a stream that is silent for so long is opened anew
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 0.5

log = logs.get(__name__)

Found = TypeVar("Found", keys_pb2.ResolveApiKeyResponse, keys_pb2.ResolveAgentResponse)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who a key or an access token stands for; `path` leads from the organization down to the agent."""

    id: str
    organization_id: str
    path: tuple[str, ...]
    path_version: int
    api_key_id: str  # '' with a token
    suspended: bool
    expires_at: datetime | None
    token_id: str = ""  # '' with a key
    actor: str = ""  # who acts as the agent (RFC 8693); '' for the agent itself
    scopes: frozenset[str] | None = None  # None: a key, good for all that its agent may

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return every id whose change makes this untrue."""
        return tuple(filter(None, (*self.path, self.id, self.api_key_id, self.token_id)))


@dataclass(frozen=True, slots=True)
class _Entry:
    agent: Agent
    until_ms: float


class Directory:
    """The keys and tokens that this gateway has seen, fed by identity; `keys` verify the tokens."""

    def __init__(self, channel: grpc.aio.Channel, keys: KeySource, clock: Clock) -> None:
        self._identity = keys_pb2_grpc.KeyServiceStub(channel)
        self._keys = keys
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._nobodies: OrderedDict[bytes, float] = OrderedDict()
        self._by_subject: dict[str, set[bytes]] = {}
        self._fills: Calls[bytes, Agent | None] = Calls()
        self._revision = 0
        self._beat_at_ms = float("-inf")

    @property
    def fresh(self) -> bool:
        """Return whether identity has spoken within 700 ms."""
        return monotonic_ms() - self._beat_at_ms <= FRESH_MS

    async def who(self, digest: bytes) -> Agent:
        """Return the agent behind a key's SHA-256; raise for a key that is unknown, expired, revoked or suspended."""
        return await self._who(digest, lambda: self._fill(digest))

    async def who_holds(self, token: Secret, digest: bytes) -> Agent:
        """Return the agent whose access token this is; raise for one that is not good here and now, or suspended."""
        return await self._who(digest, lambda: self._fill_of_token(token, digest))

    def forget(self, digest: bytes) -> None:
        """Drop what is known of one key or token."""
        entry = self._entries.pop(digest, None)
        for subject in entry.agent.subjects if entry else ():
            self._by_subject.get(subject, set()).discard(digest)
            if not self._by_subject.get(subject, True):
                del self._by_subject[subject]

    async def run(self) -> None:
        """Follow identity for ever."""
        pause_seconds = RETRY_SECONDS_MIN
        while True:
            try:
                await self._watch()
                pause_seconds = RETRY_SECONDS_MIN
            except (grpc.aio.AioRpcError, MeshError, TimeoutError) as failure:
                log.warn("identity.watch_broken", error=type(failure).__name__)
                pause_seconds = min(pause_seconds * 2, RETRY_SECONDS_MAX)
            await asyncio.sleep(pause_seconds)

    async def _watch(self) -> None:
        cursor = self._revision
        stream = self._identity.Watch(keys_pb2.WatchRequest(cursor=cursor), metadata=client.metadata())
        try:
            while True:
                async with asyncio.timeout(BEAT_MS_MAX / 1000):
                    message = await unless_cancelled_there(stream.read())
                if not isinstance(message, keys_pb2.WatchResponse):
                    return
                # A first watch knows nothing of what changed before it, so neither may the cache.
                self._take(message, reset=message.reset or cursor == 0)
                cursor = self._revision or -1
        finally:
            stream.cancel()

    def _take(self, message: keys_pb2.WatchResponse, *, reset: bool) -> None:
        if reset:
            self._entries.clear()
            self._by_subject.clear()
        if reset or message.changes:
            self._nobodies.clear()  # who was nobody may have become somebody now
        for change in message.changes:
            for digest in tuple(self._by_subject.get(change.subject_id, ())):
                self.forget(digest)
        self._revision = message.revision if reset else max(self._revision, message.revision)
        self._beat_at_ms = monotonic_ms()

    async def _who(self, digest: bytes, fill: Callable[[], Awaitable[Agent | None]]) -> Agent:
        agent = self._known(digest)
        if agent is None and not self._is_nobody(digest):
            agent = await self._fills.share(digest, fill)
        if agent is None or (agent.expires_at is not None and agent.expires_at <= self._clock.now()):
            raise Unauthenticated("INVALID_API_KEY", "the API key or access token is unknown, expired or revoked")
        if agent.suspended:
            raise PermissionDenied("AGENT_SUSPENDED", "the agent is suspended")
        return agent

    def _known(self, digest: bytes) -> Agent | None:
        entry = self._entries.get(digest) if self.fresh else None
        if entry is None or entry.until_ms <= monotonic_ms():
            return None
        self._entries.move_to_end(digest)
        return entry.agent

    def _is_nobody(self, digest: bytes) -> bool:
        return self.fresh and self._nobodies.get(digest, 0.0) > monotonic_ms()

    async def _fill(self, digest: bytes) -> Agent | None:
        request = keys_pb2.ResolveApiKeyRequest(key_sha256=digest)
        found = await self._up_to_date(
            lambda: client.call(self._identity.ResolveApiKey, request, timeout_ms=RESOLVE_MS)
        )
        return self._keep(digest, _agent_of(found) if found.usable else None, float("inf"))

    async def _fill_of_token(self, secret: Secret, digest: bytes) -> Agent | None:
        verified_ms = monotonic_ms()
        token = await self._verified(secret.reveal())
        if token is None:
            return self._keep(digest, None, 0.0)
        request = keys_pb2.ResolveAgentRequest(agent_id=token.agent_id, token_id=token.id)
        found = await self._up_to_date(lambda: client.call(self._identity.ResolveAgent, request, timeout_ms=RESOLVE_MS))
        return self._keep(digest, _holder_of(token, found) if found.usable else None, verified_ms + TOKEN_MS_MAX)

    async def _verified(self, text: str) -> AccessToken | None:
        """Return what a token says; None for one that is not good here and now."""
        key_id = access_tokens.key_id_of(text)
        if isinstance(key_id, Refused):
            return None
        try:
            key = await self._keys.public_key(key_id)
        except MeshError as error:
            raise _away(error) from None
        token = access_tokens.read(text, key, self._clock.now()) if key is not None else None
        return token if isinstance(token, AccessToken) else None

    async def _up_to_date(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Ask identity until it answers as of every change that is known here."""
        for _ in range(FILLS_MAX):
            try:
                found = await ask()
            except MeshError as error:
                raise _away(error) from None
            if found.revision >= self._revision:  # else it was read before a change that we know of
                return found
        raise Unavailable("IDENTITY_UNAVAILABLE", "identity answers with what is no longer true", retry_after_ms=200)

    def _keep(self, digest: bytes, agent: Agent | None, until_ms: float) -> Agent | None:
        self.forget(digest)
        if agent is None:
            self._nobodies[digest] = monotonic_ms() + NOBODY_MS
            if len(self._nobodies) > NOBODIES_MAX:
                self._nobodies.popitem(last=False)
            return None
        self._entries[digest] = _Entry(agent, until_ms)
        for subject in agent.subjects:
            self._by_subject.setdefault(subject, set()).add(digest)
        if len(self._entries) > ENTRIES_MAX:
            self.forget(next(iter(self._entries)))
        return agent


def _away(error: MeshError) -> Unavailable:
    log.warn("identity.unavailable", reason=error.reason)
    return Unavailable("IDENTITY_UNAVAILABLE", "identity cannot be asked who this is", retry_after_ms=500)


def _agent_of(found: keys_pb2.ResolveApiKeyResponse) -> Agent:
    return Agent(
        id=found.agent.id,
        organization_id=found.agent.organization_id,
        path=tuple(found.agent.path),
        path_version=found.agent.path_version,
        api_key_id=found.api_key_id,
        suspended=found.agent_state != directory_pb2.AGENT_STATE_ACTIVE,
        expires_at=found.expire_time.ToDatetime(UTC) if found.HasField("expire_time") else None,
    )


def _holder_of(token: AccessToken, found: keys_pb2.ResolveAgentResponse) -> Agent:
    return Agent(
        id=found.agent.id,
        organization_id=found.agent.organization_id,
        path=tuple(found.agent.path),
        path_version=found.agent.path_version,
        api_key_id="",
        suspended=found.agent_state != directory_pb2.AGENT_STATE_ACTIVE,
        expires_at=token.expires_at,
        token_id=token.id,
        actor=token.actor,
        scopes=token.scopes,
    )
