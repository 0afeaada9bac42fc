"""Who may call what: rules read from the contracts, and the one table of what each role permits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from mandate.options.v1 import access_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

SERVICE, SELF, PUBLIC = "service", "self", "public"
PERMISSION_SHAPE = re.compile(r"^[a-z]+(\.[a-z_]+){2}$")

_READ = frozenset(
    {
        "identity.directory.read",
        "identity.keys.read",
        "vault.credentials.read",
        "ledger.wallet.read",
        "ledger.entries.read",
        "ledger.usage.read",
        "ledger.budgets.read",
        "ledger.audit.read",
        "gateway.policies.read",
        "gateway.routes.read",
    }
)
_BUILD = frozenset({"identity.directory.write", "identity.agents.suspend", "identity.keys.write"})
_SPEND = frozenset({"ledger.credits.purchase", "ledger.budgets.write", "ledger.holds.resolve"})
_GOVERN = frozenset(
    {"identity.organizations.write", "vault.credentials.write", "gateway.policies.write", "gateway.routes.write"}
)

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "owner": _READ | _BUILD | _SPEND | _GOVERN,
        "admin": _READ | _BUILD | _GOVERN | {"ledger.budgets.write", "ledger.holds.resolve"},
        "member": _READ | _BUILD,
        "billing": _READ | _SPEND,
        "viewer": _READ,
    }
)
PERMISSIONS = ROLES["owner"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one method asks of whoever calls it."""

    callers: frozenset[str]
    permission: str
    scope: tuple[str, ...]

    @property
    def needs_person(self) -> bool:
        """Return whether a person must be behind the call."""
        return self.permission not in {SERVICE, PUBLIC}


class BadContract(Exception):
    """A method's access option is missing or wrong; a server that has one refuses to start."""


def rules_of(services: Iterable[ServiceDescriptor]) -> dict[str, Rule]:
    """Map every full method name (`/package.Service/Method`) to its rule."""
    return {
        f"/{service.full_name}/{method.name}": rule_of(method) for service in services for method in service.methods
    }


def rule_of(method: MethodDescriptor) -> Rule:
    """Read and check one method's rule."""
    option = method.GetOptions().Extensions[access_pb2.access]
    if not option.callers or not option.permission:
        raise BadContract(f"{method.full_name} declares no access")
    scope = tuple(option.scope.split(".")) if option.scope else ()
    if option.permission not in {SERVICE, SELF, PUBLIC}:
        if option.permission not in PERMISSIONS or not PERMISSION_SHAPE.match(option.permission):
            raise BadContract(f"{method.full_name}: no role has the permission {option.permission!r}")
        if not scope or not _reaches(method.input_type, scope):
            raise BadContract(f"{method.full_name}: its scope {option.scope!r} is no text field of the request")
    return Rule(frozenset(option.callers), option.permission, scope)


def scope_of(rule: Rule, request: Message) -> str:
    """Return the id that the rule's permission is checked on."""
    value: object = request
    for part in rule.scope:
        value = getattr(value, part)
    return str(value)


def permits(role: str, permission: str) -> bool:
    """Return whether a role holds a permission; a role nobody defined holds none."""
    return permission in ROLES.get(role, frozenset())


def _reaches(message: Descriptor, path: tuple[str, ...]) -> bool:
    field = message.fields_by_name.get(path[0])
    if field is None or field.is_repeated:
        return False
    if len(path) == 1:
        return field.type == field.TYPE_STRING
    return field.message_type is not None and _reaches(field.message_type, path[1:])
