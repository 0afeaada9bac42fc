"""What is asked of holds and what is answered: the items of a batch and their outcomes, as pure values.

The decisions are taken under the organization's lock, by the functions in `migrations/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ledger_svc.pricing import Bound, Price, Usage


class Refusal(IntEnum):
    """Why there is no hold; the numbers are those of `place_holds`."""

    EXHAUSTED = 2
    IN_FLIGHT = 3
    DISABLED = 4
    VOIDED = 5
    COST_LIMIT = 9


@dataclass(frozen=True, slots=True)
class Placing:
    """A request for a hold, priced."""

    request_id: str
    holder_id: str
    agent_id: str
    path_version: int
    api_key_id: str
    prices: tuple[Price, ...]
    input_tokens_max: int
    output_wanted: int
    output_min: int
    choices: int
    bound: Bound
    end_user: str = ""
    cost_max_micros: int = 0  # no limit of its own

    @property
    def output_fits(self) -> int:
        """Return how many of the wanted tokens its own limit allows; below `output_min` it is refused."""
        if not self.cost_max_micros:
            return self.output_wanted
        return self.bound.output_within(self.cost_max_micros, self.output_wanted)

    @property
    def routes(self) -> str:
        """Return the routes as one text."""
        return ",".join(price.route for price in self.prices)

    @property
    def price_ids(self) -> str:
        """Return the ids of the routes' prices as one text."""
        return ",".join(price.id for price in self.prices)


@dataclass(frozen=True, slots=True)
class Granted:
    """The hold is committed."""

    output_tokens: int
    ceiling_micros: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no hold."""

    refusal: Refusal
    account_id: str
    target_id: str
    short_micros: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class StalePath:
    """The gateway's idea of the agent's path is not the ledger's."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """The holder's lease is gone."""


@dataclass(frozen=True, slots=True)
class Differs:
    """The key was used for another request."""

    field: str


Placed = Granted | Refused | StalePath | Lapsed | Differs


@dataclass(frozen=True, slots=True)
class Settling:
    """What a completion used, and what that costs at its hold's price."""

    request_id: str
    price: Price
    usage: Usage
    cost_micros: int
    estimated: bool
    outcome: str
    http_status: int
    latency_ms: int
    overhead_ms: int
    first_token_ms: int
    streamed: bool
    usage_source: str = ""
    attempts: int = 0
    dialect: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """The charge as posted."""

    charged_micros: int
    balance_micros: int
    breach_micros: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class NoHold:
    """No such hold was granted."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The hold came to another end before."""

    how: str


SettleOutcome = Settled | NoHold | Ended | Differs


@dataclass(frozen=True, slots=True)
class Posting:
    """A charge that has its price."""

    request_id: str
    agent_id: str
    path_version: int
    api_key_id: str
    end_user: str
    provider: str
    model: str
    amount_micros: int


Posted = Settled | Refused | StalePath | Differs


@dataclass(frozen=True, slots=True)
class Voiding:
    """A hold to give back: nothing went upstream."""

    request_id: str
    agent_id: str
    reason: str = field(default="")


@dataclass(frozen=True, slots=True)
class Voided:
    """The hold is gone, or will never be."""

    replayed: bool


VoidOutcome = Voided | Ended | Differs
