"""Who is calling: key digests to agents, kept only while identity's watch stream proves that nothing has changed.

An entry is usable for 700 ms after the last beat; without a beat each request asks identity itself, and where identity
does not answer nobody gets in. What an agent may ask for is not here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc

from gateway_svc.calls import Calls, unless_cancelled_there
from mandate.identity.v1 import directory_pb2, keys_pb2, keys_pb2_grpc
from mesh import client
from mesh.clock import Clock, monotonic_ms
from mesh.errors import MeshError, PermissionDenied, Unauthenticated, Unavailable
from mesh.telemetry import logs

FRESH_MS = 700
ENTRIES_MAX = 50_000
NOBODIES_MAX = 10_000
NOBODY_MS = 2_000
FILLS_MAX = 3
RESOLVE_MS = 2_000
BEAT_MS_MAX = 2_000  # a stream that is silent for so long is opened anew
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 0.5

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who a key stands for; `path` leads from the organization down to the agent."""

    id: str
    organization_id: str
    path: tuple[str, ...]
    path_version: int
    api_key_id: str
    suspended: bool
    expires_at: datetime | None

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return every id whose change makes this untrue."""
        return (*self.path, self.id, self.api_key_id)


class Directory:
    """The keys that this gateway has seen, fed by identity."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._identity = keys_pb2_grpc.KeyServiceStub(channel)
        self._clock = clock
        self._agents: OrderedDict[bytes, Agent] = OrderedDict()
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
        agent = self._known(digest)
        if agent is None and not self._is_nobody(digest):
            agent = await self._fills.share(digest, lambda: self._fill(digest))
        if agent is None or (agent.expires_at is not None and agent.expires_at <= self._clock.now()):
            raise Unauthenticated("INVALID_API_KEY", "the API key is unknown, expired or revoked")
        if agent.suspended:
            raise PermissionDenied("AGENT_SUSPENDED", "the agent of this key is suspended")
        return agent

    def forget(self, digest: bytes) -> None:
        """Drop what is known of one key."""
        agent = self._agents.pop(digest, None)
        for subject in agent.subjects if agent else ():
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
            self._agents.clear()
            self._by_subject.clear()
        if reset or message.changes:
            self._nobodies.clear()  # a key that was nobody's may have been issued now
        for change in message.changes:
            for digest in tuple(self._by_subject.get(change.subject_id, ())):
                self.forget(digest)
        self._revision = message.revision if reset else max(self._revision, message.revision)
        self._beat_at_ms = monotonic_ms()

    def _known(self, digest: bytes) -> Agent | None:
        agent = self._agents.get(digest) if self.fresh else None
        if agent is not None:
            self._agents.move_to_end(digest)
        return agent

    def _is_nobody(self, digest: bytes) -> bool:
        return self.fresh and self._nobodies.get(digest, 0.0) > monotonic_ms()

    async def _fill(self, digest: bytes) -> Agent | None:
        request = keys_pb2.ResolveApiKeyRequest(key_sha256=digest)
        for _ in range(FILLS_MAX):
            try:
                found = await client.call(self._identity.ResolveApiKey, request, timeout_ms=RESOLVE_MS)
            except MeshError as error:
                log.warn("identity.unavailable", reason=error.reason)
                raise Unavailable(
                    "IDENTITY_UNAVAILABLE", "identity cannot be asked who this is", retry_after_ms=500
                ) from None
            if found.revision >= self._revision:  # else it was read before a change that we know of
                return self._keep(digest, found)
        raise Unavailable("IDENTITY_UNAVAILABLE", "identity answers with what is no longer true", retry_after_ms=200)

    def _keep(self, digest: bytes, found: keys_pb2.ResolveApiKeyResponse) -> Agent | None:
        self.forget(digest)
        if not found.usable:
            self._nobodies[digest] = monotonic_ms() + NOBODY_MS
            if len(self._nobodies) > NOBODIES_MAX:
                self._nobodies.popitem(last=False)
            return None
        agent = _agent_of(found)
        self._agents[digest] = agent
        for subject in agent.subjects:
            self._by_subject.setdefault(subject, set()).add(digest)
        if len(self._agents) > ENTRIES_MAX:
            self.forget(next(iter(self._agents)))
        return agent


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
