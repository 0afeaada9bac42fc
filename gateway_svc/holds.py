"""What the gateway asks of the ledger for one completion, and what it is answered. How they travel is in `charging`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto

from gateway_svc.settlement import Settlement
from gateway_svc.usage import TokenUsage, UsageSource
from mesh.errors import Exhausted, MeshError, PermissionDenied, Unavailable

RETRY_IN_FLIGHT_MS = 250


class Dialect(StrEnum):
    """The interface that a completion came by, in the ledger's words."""

    CHAT_COMPLETIONS = "chat.completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Route:
    """One way a completion may go upstream."""

    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Place:
    """A hold that is wanted; it covers the dearest of its routes, at most 8.

    A `cost_max_micros` above 0 is the most that it may come to, whatever there is.
    """

    request_id: str
    agent_id: str
    path_version: int
    api_key_id: str
    routes: tuple[Route, ...]
    input_tokens_max: int
    output_tokens_wanted: int
    output_tokens_min: int
    choices: int
    end_user: str = ""
    cost_max_micros: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """A committed hold; it may be dispatched only while the lease of its holder lives."""

    request_id: str
    agent_id: str
    holder_id: str
    output_tokens: int
    ceiling_micros: int


class Refusal(Enum):
    """Why there is no hold."""

    EXHAUSTED = auto()
    IN_FLIGHT = auto()
    DISABLED = auto()
    VOIDED = auto()
    COST_LIMIT = auto()


@dataclass(frozen=True, slots=True)
class Refused:
    """A final no, and the wallet or budget that stands in the way; none does where it is the request's own limit."""

    refusal: Refusal
    account_id: str
    short_micros: int

    def error(self) -> MeshError:
        """Return it as the error that the agent is told."""
        match self.refusal:
            case Refusal.EXHAUSTED:
                text = f"the credits of {self.account_id} are used up (short of {self.short_micros} micro-credits)"
                return Exhausted("INSUFFICIENT_QUOTA", text, account=self.account_id)
            case Refusal.IN_FLIGHT:
                text = f"requests in flight hold what is left of {self.account_id}; try again"
                return Exhausted("BUDGET_IN_FLIGHT", text, retry_after_ms=RETRY_IN_FLIGHT_MS, account=self.account_id)
            case Refusal.DISABLED:
                text = f"the budget {self.account_id} was disabled when it was exceeded"
                return Exhausted("BUDGET_DISABLED", text, account=self.account_id)
            case Refusal.VOIDED:
                return Unavailable("ACCOUNTING_UNAVAILABLE", "the request was given up", retry_after_ms=500)
            case Refusal.COST_LIMIT:
                text = f"the request may cost {self.short_micros} micro-credits more than its limit on cost allows"
                return PermissionDenied("REQUEST_COST_LIMIT", text, short_micros=str(self.short_micros))


@dataclass(frozen=True, slots=True)
class Report:
    """A settle: what was used, and how it went; `route` is an index into the routes of its hold.

    `attempts` counts how often a provider was asked, at most 100; 0 where it was not counted.
    """

    request_id: str
    agent_id: str
    settlement: Settlement
    ceiling: TokenUsage  # all that its hold covers
    latency_ms: int
    overhead_ms: int
    first_token_ms: int
    streamed: bool
    route: int = 0
    usage_source: UsageSource | None = None
    attempts: int = 0
    dialect: Dialect | None = None

    def at_ceiling(self) -> Report:
        """Return the report that charges all that was held, as an estimate: the figures were none that can be."""
        charged = replace(self.settlement, usage=self.ceiling, estimated=True)
        return replace(self, settlement=charged, usage_source=UsageSource.INVALID)


@dataclass(frozen=True, slots=True)
class Charged:
    """A committed charge and the wallet's settled balance after it."""

    charged_micros: int
    balance_micros: int
