"""The ledger's rules again in plain Python, without a database: what each operation must answer and leave behind."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Account:
    """Funds that holds count against; a budget's begin at 0 and fall to minus its limit."""

    settled: int = 0
    held: int = 0
    budget: Budget | None = None

    @property
    def floor(self) -> int:
        return -self.budget.limit if self.budget else 0


@dataclass
class Budget:
    id: str
    target: str
    period: str
    limit: int
    auto: bool
    disabled: bool = False
    windows: dict[int, Account] = field(default_factory=dict)

    def window(self, day: int) -> Account:
        return self.windows.setdefault(self.starts(day), Account(budget=self))

    def starts(self, day: int) -> int:
        return day if self.period == "daily" else 0  # no test lives for a month


@dataclass
class Hold:
    path: tuple[str, ...]
    day: int
    ceiling: int
    limits: list[Account]
    phase: str = "held"
    charged: int = 0
    tokens: int = -1
    was_uncertain: bool = False


@dataclass
class Model:
    """One organization; money in micro-credits, days counted from the first."""

    token_micros: int
    wallet: Account = field(default_factory=Account)
    budgets: dict[str, Budget] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    day: int = 0

    def create(self, budget_id: str, target: str, period: str, limit: int, *, auto: bool) -> None:
        budget = self.budgets[budget_id] = Budget(budget_id, target, period, limit, auto)
        account = budget.window(self.day)
        for hold in self.holds.values():
            if target in hold.path and (period == "total" or budget.starts(hold.day) == budget.starts(self.day)):
                account.settled -= hold.charged
                if hold.phase in {"held", "uncertain"}:
                    hold.limits.append(account)
                    account.held += hold.ceiling if hold.phase == "held" else 0

    def place(self, key: str, path: tuple[str, ...], wanted: int, least: int) -> tuple[str, int]:
        above = sorted((b for b in self.budgets.values() if b.target in path), key=lambda budget: budget.id)
        limits = [self.wallet, *(budget.window(self.day) for budget in above)]
        free = min(account.settled - account.held - account.floor for account in limits)
        if any(budget.disabled for budget in above):
            return "DISABLED", 0
        if least * self.token_micros > free:
            spent = min(limits, key=lambda account: account.settled - account.floor)
            if least * self.token_micros <= spent.settled - spent.floor:
                return "IN_FLIGHT", 0
            if spent.budget and spent.budget.auto and least * self.token_micros <= -spent.floor:
                spent.budget.disabled = True
            return "EXHAUSTED", 0
        tokens = min(wanted, free // self.token_micros)
        hold = self.holds[key] = Hold(path, self.day, tokens * self.token_micros, limits)
        for account in limits:
            account.held += hold.ceiling
        return "granted", tokens

    def settle(self, key: str, tokens: int) -> tuple[str, int, int]:
        hold = self.holds[key]
        if hold.phase == "settled":
            return ("differs", 0, 0) if tokens != hold.tokens else ("settled", hold.charged, 0)
        if hold.phase in {"voided", "resolved"}:
            return hold.phase, 0, 0
        cost = tokens * self.token_micros
        self._close(hold, min(cost, hold.ceiling), "settled")
        hold.tokens = tokens
        over = max(0, cost - hold.ceiling)
        fits = max(0, min([over, *(a.settled - a.held - a.floor for a in hold.limits)]))
        hold.charged += fits
        for account in hold.limits:
            account.settled -= fits
            if account.budget and account.budget.auto and account.settled <= account.floor:
                account.budget.disabled = True
        return "settled", hold.charged, over - fits

    def void(self, key: str) -> str:
        hold = self.holds[key]
        if hold.phase in {"held", "uncertain"}:
            self._close(hold, 0, "voided")
        return hold.phase

    def lapse(self) -> None:
        for hold in self.holds.values():
            if hold.phase == "held":
                self._close(hold, hold.ceiling, "uncertain")
                hold.was_uncertain = True
                for account in hold.limits:
                    if account.budget and account.budget.auto and account.settled <= account.floor:
                        account.budget.disabled = True

    def resolve(self, key: str, actual: int | None) -> str:
        hold = self.holds[key]
        charge = hold.ceiling if actual is None else actual
        if not hold.was_uncertain:
            return "none"
        if hold.phase != "uncertain":
            return "decided"
        if charge > hold.ceiling:
            return "above"
        self._close(hold, charge, "resolved")
        return "done"

    def _close(self, hold: Hold, charge: int, phase: str) -> None:
        for account in hold.limits:
            account.held -= hold.ceiling if hold.phase == "held" else 0
            account.settled -= charge - hold.charged
        hold.charged, hold.phase = charge, phase
