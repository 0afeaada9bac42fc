"""Steps 1 to 3 of a completion: who asks, whether its policies allow it, and what it can cost at most."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gateway_svc import chat as requests
from gateway_svc.access_tokens import SCOPE, TOKEN_CHARACTERS_MAX, is_shaped
from gateway_svc.bounds import Bound, Model, bound
from gateway_svc.catalog import Catalog
from gateway_svc.chat import ChatRequest
from gateway_svc.policies import Policy
from gateway_svc.rates import Rates, Taken
from gateway_svc.rules import Rules
from gateway_svc.who import Agent, Directory
from mesh.errors import PermissionDenied, Unauthenticated
from mesh.secret import Secret

KEY_PREFIX = "cpk_"
KEY_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request for a completion; `started_ms` is when it came, on the monotonic clock."""

    request_id: str
    key: Secret | None
    body: bytes
    clamp: bool
    mock: str
    started_ms: float


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be asked for; whether it can be paid is the ledger's word."""

    ask: Ask
    agent: Agent
    chat: ChatRequest
    model: Model
    bound: Bound
    taken: Taken


class Admission:
    """What has to be known of an agent before it may ask for anything."""

    def __init__(self, directory: Directory, rules: Rules, rates: Rates, catalog: Catalog) -> None:
        self._directory = directory
        self._rules = rules
        self._rates = rates
        self._catalog = catalog

    async def admit(self, ask: Ask) -> Admitted:
        """Let a request in, counted against the rates of all its levels, or raise why not."""
        agent = await self.agent(ask.key)
        policy = await self._rules.over(agent.path)
        chat = requests.parse(ask.body)
        model = self._allowed(chat.model, policy)
        bounded = bound(chat, model, policy, clamp=ask.clamp)
        taken = await self._rates.take(policy.rates, bounded.tokens)
        return Admitted(ask, agent, chat, model, bounded, taken)

    async def agent(self, key: Secret | None) -> Agent:
        """Return who a key or an access token stands for; its shape says which it is."""
        digest = _digest(key)
        if key is None or key.reveal().startswith(KEY_PREFIX):
            return await self._directory.who(digest)
        agent = await self._directory.who_holds(key, digest)
        if agent.scopes is not None and SCOPE not in agent.scopes:
            raise PermissionDenied("INSUFFICIENT_SCOPE", f"the access token has no scope {SCOPE}")
        return agent

    async def agent_anew(self, key: Secret | None) -> Agent:
        """Ask identity again who a key or an access token stands for."""
        self._directory.forget(_digest(key))
        return await self.agent(key)

    async def models(self, key: Secret | None) -> list[Model]:
        """Return the models that a key may ask for."""
        policy = await self._rules.over((await self.agent(key)).path)
        return [model for model in self._catalog.models() if policy.allows(model.name)]

    async def correct(self, admitted: Admitted, tokens: int) -> None:
        """Count what a request used instead of what it might have used."""
        await self._rates.correct(admitted.taken, tokens)

    def _allowed(self, name: str, policy: Policy) -> Model:
        model = self._catalog.model(name)
        if not policy.allows(model.name):
            raise PermissionDenied("MODEL_NOT_ALLOWED", f"a policy does not allow {model.name}", field="model")
        return model


def _digest(key: Secret | None) -> bytes:
    """Return the SHA-256 of what looks like a key or an access token; anything else is nobody's."""
    text = key.reveal() if key is not None else ""
    if not text:
        raise Unauthenticated("INVALID_API_KEY", "an API key is needed: Authorization: Bearer cpk_…")
    is_key = text.startswith(KEY_PREFIX)
    if len(text) > (KEY_CHARACTERS_MAX if is_key else TOKEN_CHARACTERS_MAX) or not (is_key or is_shaped(text)):
        raise Unauthenticated("INVALID_API_KEY", "the API key or access token is unknown, expired or revoked")
    return hashlib.sha256(text.encode(errors="replace")).digest()
