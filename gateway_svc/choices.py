"""Where a request may be sent: the models that its name stands for, as far as policy, keys and dialects let them be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway_svc.aliases import Aliases
from gateway_svc.bounds import Model
from gateway_svc.breaker import CircuitKey
from gateway_svc.catalog import Catalog
from gateway_svc.credentials import Credential, Credentials
from gateway_svc.dialects import Request
from gateway_svc.policies import Policy
from gateway_svc.providers import Provider
from gateway_svc.routing import Target, order
from gateway_svc.ways import Far, ways
from gateway_svc.who import Agent
from mesh import failpoints
from mesh.errors import MeshError, NotFound, PermissionDenied, Unavailable
from mesh.secret import Secret

# Families that think whether they are asked to or not.
THINKING = re.compile(r"^(o[1-9]|gpt-[5-9]|gemini-|deepseek-reasoner|claude-[a-z]+-[5-9])")


@dataclass(frozen=True, slots=True)
class Choice:
    """One way upstream with all that is needed to go it."""

    model: Model
    far: Far
    provider: Provider
    credential: Credential | None
    organization_id: str
    priced: bool  # whether the price list names it: whatever else tenants name is told apart in no metric

    @property
    def secret(self) -> Secret | None:
        """Return what must be scrubbed from whatever the provider says."""
        return None if self.credential is None else self.credential.secret

    @property
    def own(self) -> bool:
        """Return whether it is asked with the organization's own key."""
        return self.credential is not None and self.credential.own

    @property
    def thinks_unseen(self) -> bool:
        """Return whether the model may write tokens that it bills and does not show."""
        asked = self.far.request.document.get("thinking") not in (None, {"type": "disabled"})
        return asked or THINKING.match(self.model.name) is not None

    @property
    def circuit(self) -> CircuitKey | None:
        """Return what fails together, as far as this organization sees; None where nothing can."""
        credential = self.credential
        if credential is None:
            return None
        return CircuitKey(
            self.model.provider,
            credential.base_url,
            credential.fingerprint,
            self.model.name,
            self.organization_id,
        )


class Choices:
    """Turns the name of a model, or an alias, into ways upstream."""

    def __init__(
        self, catalog: Catalog, aliases: Aliases, credentials: Credentials, providers: Mapping[str, Provider]
    ) -> None:
        self._catalog = catalog
        self._aliases = aliases
        self._credentials = credentials
        self._providers = providers

    async def of(self, request: Request, agent: Agent, policy: Policy, seed: str) -> tuple[Choice, ...]:
        """Return where a request may go, the first to be tried first; the first reason why not when it can't."""
        refused: MeshError | None = None
        reached: dict[Model, tuple[Provider, Credential | None]] = {}
        for target in await self._targets(request.model, agent, seed):
            try:
                model = self._model(target)
                _check(model, policy)
                reached[model] = await self._reach(target, agent)
            except MeshError as error:
                refused = refused or error
        if not reached:
            raise refused or _unknown(request.model)
        found = ways(request, reached, lambda model: reached[model][0].speaks(reached[model][1]))
        return tuple(
            Choice(way.model, way.far, *reached[way.model], agent.organization_id, self._is_priced(way.model))
            for way in found
        )

    async def listed(self, agent: Agent, policy: Policy) -> list[tuple[str, Model]]:
        """Return the names that an agent may ask for, each with a model that it leads to, in the order of the names."""
        named = {model.name: model for model in self._catalog.models() if _allowed(model, policy)}
        for alias in (await self._aliases.of(agent.organization_id)).values():
            for target in alias.targets:
                model = self._find(target)
                if model is not None and _allowed(model, policy):
                    named.setdefault(alias.name, model)
        return sorted(named.items())

    async def _targets(self, name: str, agent: Agent, seed: str) -> tuple[Target, ...]:
        alias = (await self._aliases.of(agent.organization_id)).get(name)
        if alias is not None:
            return order(alias.targets, seed)
        model = self._catalog.model(name)
        return (Target(model.provider, model.name),)

    def _model(self, target: Target) -> Model:
        model = self._find(target)
        if model is None:  # it had a price when the alias was made
            raise _unknown(target.model)
        return model

    def _is_priced(self, model: Model) -> bool:
        return self._catalog.find(model.provider, model.name) is not None

    def _find(self, target: Target) -> Model | None:
        """Return what the price list says of a target, else what the alias says itself."""
        listed = self._catalog.find(target.provider, target.model)
        if listed is not None or target.limits is None:
            return listed
        return Model(target.provider, target.model, target.limits.context_tokens, target.limits.output_tokens_max)

    async def _reach(self, target: Target, agent: Agent) -> tuple[Provider, Credential | None]:
        provider = self._providers.get(target.provider)
        if provider is None:
            raise Unavailable("PROVIDER_NOT_CONFIGURED", f"the provider {target.provider} is not known here")
        if not provider.needs_credential:
            return provider, None
        failpoints.reach("gateway.credential.asking")
        credential = await self._credentials.of(agent.organization_id, target.provider)
        failpoints.reach("gateway.credential.given")
        if target.limits is not None and not credential.named:  # a model of no list: of the organization's own server
            text = f"{target.model} is asked for at an address of the organization's own, and there is none"
            raise Unavailable("PROVIDER_NOT_CONFIGURED", text)
        return provider, credential


def _check(model: Model, policy: Policy) -> None:
    if not policy.allows(model.name):
        raise PermissionDenied("MODEL_NOT_ALLOWED", f"a policy does not allow {model.name}", field="model")
    if not policy.allows_provider(model.provider):
        text = f"a policy does not allow the provider {model.provider}"
        raise PermissionDenied("PROVIDER_NOT_ALLOWED", text, field="model")


def _allowed(model: Model, policy: Policy) -> bool:
    return policy.allows(model.name) and policy.allows_provider(model.provider)


def _unknown(name: str) -> NotFound:
    return NotFound("MODEL_NOT_FOUND", f"there is no model {name!r}", field="model")
