"""Steps 1 to 3 of a completion: who asks, whether its policies allow it, where it may go, what it can cost at most."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gateway_svc.access_tokens import SCOPE, TOKEN_CHARACTERS_MAX, is_shaped
from gateway_svc.bounds import Bound, Model, bound
from gateway_svc.choices import Choice, Choices
from gateway_svc.credentials import Credential
from gateway_svc.dialects import Dialect, Request
from gateway_svc.dialects.registry import parse
from gateway_svc.limits import RateExceeded, Taken, TokensAboveRate
from gateway_svc.policies import Policy, Rate
from gateway_svc.rates import Rates
from gateway_svc.repeats import Wish
from gateway_svc.rules import Rules
from gateway_svc.violations import Violation, Violations
from gateway_svc.who import Agent, Directory
from mesh.errors import MeshError, PermissionDenied, Unauthenticated
from mesh.secret import Secret

KEY_PREFIX = "cpk_"
KEY_CHARACTERS_MAX = 256
# Counting is free and nothing is held for it; what it uses up is the platform's own rate at the provider.
COUNTS_PER_MINUTE_AGENT, COUNTS_PER_MINUTE_ORGANIZATION = 60, 600
BY_POLICY = (PermissionDenied, RateExceeded, TokensAboveRate)  # refusals that go on record


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request; `started_ms` is when it came, on the monotonic clock."""

    request_id: str
    dialect: Dialect
    key: Secret | None
    agent: Agent  # who asks, as the key said when the request came
    body: bytes
    clamp: bool
    mock: str
    started_ms: float
    wish: Wish | None = None  # to be run once, and given again


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be asked for; whether it can be paid is the ledger's word."""

    ask: Ask
    agent: Agent
    policy: Policy
    request: Request
    choices: tuple[Choice, ...]  # at least one
    bound: Bound
    taken: Taken


class Admission:
    """What has to be known of an agent before it may ask for anything."""

    def __init__(
        self, directory: Directory, rules: Rules, rates: Rates, choices: Choices, violations: Violations
    ) -> None:
        self._directory = directory
        self._rules = rules
        self._rates = rates
        self._choices = choices
        self._violations = violations

    async def admit(self, ask: Ask) -> Admitted:
        """Let a request in, counted against the rates of all its levels, or raise why not."""
        agent = ask.agent
        policy = await self._rules.of(agent.path)
        try:
            request, choices = await self._choose(ask, agent, policy)
            sizes = [(choice.model, choice.far.size) for choice in choices]
            bounded = bound(request, sizes, policy, clamp=ask.clamp)
            taken = await self._rates.take(agent.organization_id, policy.rates, bounded.tokens)
        except BY_POLICY as refused:
            await self.violated(ask, agent, refused)
            raise
        return Admitted(ask, agent, policy, request, choices, bounded, taken)

    async def chosen(self, ask: Ask) -> Choice:
        """Return where a request that asks for no completion goes; it counts as one without tokens.

        With the platform's key it may go so often a minute and no more, whatever policies say.
        """
        agent = ask.agent
        policy = await self._rules.of(agent.path)
        try:
            _, choices = await self._choose(ask, agent, policy)
            rates = (*policy.rates, *_counting(agent, choices[0].credential))
            await self._rates.take(agent.organization_id, rates, 0)
        except BY_POLICY as refused:
            await self.violated(ask, agent, refused)
            raise
        return choices[0]

    async def repeated(self, ask: Ask, agent: Agent) -> Taken:
        """Count a request that is answered with what is kept: as one without tokens."""
        policy = await self._rules.of(agent.path)
        try:
            return await self._rates.take(agent.organization_id, policy.rates, 0)
        except BY_POLICY as refused:
            await self.violated(ask, agent, refused)
            raise

    async def violated(self, ask: Ask, agent: Agent, refused: MeshError) -> None:
        """Put a refusal by policy on record, before anybody is told of it."""
        await self._violations.record(
            Violation(
                organization_id=agent.organization_id,
                agent_id=agent.id,
                api_key_id=agent.api_key_id,
                request_id=ask.request_id,
                endpoint=ask.dialect,
                reason=refused.reason,
                limit=refused.details.get("limit", ""),
            )
        )

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

    async def models(self, key: Secret | None) -> list[tuple[str, Model]]:
        """Return the names that a key may ask for, and what they lead to."""
        agent = await self.agent(key)
        return await self._choices.listed(agent, await self._rules.of(agent.path))

    def correct(self, admitted: Admitted, tokens: int) -> None:
        """Count what a request used instead of what it might have used."""
        self._rates.correct(admitted.taken, tokens)

    async def _choose(self, ask: Ask, agent: Agent, policy: Policy) -> tuple[Request, tuple[Choice, ...]]:
        request = _read(ask, policy)
        choices = await self._choices.of(request, agent, policy, ask.request_id)
        for choice in choices:
            choice.provider.check(ask.mock)
        return request, choices


def _read(ask: Ask, policy: Policy) -> Request:
    if not policy.allows_endpoint(ask.dialect):
        raise PermissionDenied("ENDPOINT_NOT_ALLOWED", f"a policy does not allow {ask.dialect}")
    request = parse(ask.dialect, ask.body)
    for name in request.tools:
        if not policy.allows_tool(name):
            text = f"a policy does not allow the tool {name[:100]!r}"
            raise PermissionDenied("TOOL_NOT_ALLOWED", text, field="tools")
    return request


def _counting(agent: Agent, credential: Credential | None) -> tuple[Rate, ...]:
    """Return what limits counting beside policies: whose key it is decides, as no wallet is asked."""
    if credential is None or credential.own:
        return ()
    return (
        Rate(f"counting:{agent.id}", COUNTS_PER_MINUTE_AGENT, None),
        Rate(f"counting:{agent.organization_id}", COUNTS_PER_MINUTE_ORGANIZATION, None),
    )


def _digest(key: Secret | None) -> bytes:
    """Return the SHA-256 of what looks like a key or an access token; anything else is nobody's."""
    text = key.reveal() if key is not None else ""
    if not text:
        raise Unauthenticated("INVALID_API_KEY", "an API key is needed: Authorization: Bearer cpk_…")
    is_key = text.startswith(KEY_PREFIX)
    if len(text) > (KEY_CHARACTERS_MAX if is_key else TOKEN_CHARACTERS_MAX) or not (is_key or is_shaped(text)):
        raise Unauthenticated("INVALID_API_KEY", "the API key or access token is unknown, expired or revoked")
    return hashlib.sha256(text.encode(errors="replace")).digest()
