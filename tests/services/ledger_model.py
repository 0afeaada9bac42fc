"""The ledger's rules again in plain Python, without a database: what each operation must answer and leave behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

Moment = tuple[int, int, int]  # a day, its midnight (0) or noon (1), and the order of what happens then
NEVER: Moment = (10**9, 0, 0)


@dataclass
class Account:
    """Funds that holds count against; a budget's begin at 0 and fall to minus its limit."""

    settled: int = 0
    held: int = 0
    budget: Budget | None = None

    @property
    def floor(self) -> int:
        return -self.budget.limit if self.budget else 0

    @property
    def used_up(self) -> bool:
        return self.settled <= self.floor


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
    breach: int = 0
    tokens: int = -1
    was_uncertain: bool = False

    @property
    def ends(self) -> set[str]:
        return {self.phase, *(["uncertain"] if self.was_uncertain else [])} - {"held"}


@dataclass
class Lot:
    """Granted credits; `due` is when what remains is to be taken."""

    source: str
    amount: int
    priority: int
    expires: Moment
    remaining: int
    due: Moment
    cause: str = "expired"


@dataclass
class Model:
    """One organization; money in micro-credits, days counted from the first."""

    token_micros: int
    wallet: Account = field(default_factory=Account)
    budgets: dict[str, Budget] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)
    bought: dict[str, int] = field(default_factory=dict)  # what of each purchase can still be given back
    by_hand: Counter[str] = field(default_factory=Counter)  # of the wallet's counterparts
    spent: int = 0  # by the wallet since the last cut
    day: int = 0
    order: int = 0

    @property
    def now(self) -> Moment:
        self.order += 1
        return self.day, 1, self.order

    @property
    def balances(self) -> Mapping[str, int]:
        """What every account that is no budget's has settled, those with nothing left out."""
        found = self.by_hand.copy()
        found["wallet"] = self.wallet.settled
        for hold in self.holds.values():
            found["suspense" if hold.phase == "uncertain" else "revenue"] += hold.charged + hold.breach
            found["breach"] -= hold.breach
        return {kind: amount for kind, amount in found.items() if amount}

    def create(self, budget_id: str, target: str, period: str, limit: int, *, auto: bool) -> None:
        budget = self.budgets[budget_id] = Budget(budget_id, target, period, limit, auto)
        account = budget.window(self.day)
        for hold in self.holds.values():
            if target in hold.path and (period == "total" or budget.starts(hold.day) == budget.starts(self.day)):
                account.settled -= hold.charged
                if hold.phase in {"held", "uncertain"}:
                    hold.limits.append(account)
                    account.held += hold.ceiling if hold.phase == "held" else 0

    def place(self, key: str, path: tuple[str, ...], wanted: int, least: int, cost_max: int = 0) -> tuple[str, int]:
        """Return the answer and the tokens granted."""
        self.expire()
        if cost_max:
            wanted = min(wanted, cost_max // self.token_micros)
            if wanted < least:
                return "COST_LIMIT", 0
        limits = self._above(path)
        refused = self._refusal(limits, least * self.token_micros)
        if refused:
            return refused, 0
        free = min(account.settled - account.held - account.floor for account in limits)
        tokens = min(wanted, free // self.token_micros)
        self._hold(key, path, tokens * self.token_micros, limits)
        return "granted", tokens

    def charge(self, key: str, path: tuple[str, ...], amount: int) -> str:
        """Charge in one phase."""
        self.expire()
        limits = self._above(path)
        refused = self._refusal(limits, amount)
        if refused:
            return refused
        hold = self._hold(key, path, amount, limits)
        self._close(hold, amount, "settled")
        self._disable_used_up(hold.limits)
        return "settled"

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
        self._take(hold, fits)
        hold.breach = over - fits
        self._disable_used_up(hold.limits)
        return "settled", hold.charged, hold.breach

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
                self._disable_used_up(hold.limits)

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

    def purchase(self, key: str, amount: int) -> str:
        self.expire()
        self.bought[key] = amount
        return self._post("purchases", amount)

    def refund(self, purchase: str, amount: int) -> str:
        """Give back money for bought credits; what was granted is none."""
        self.expire()
        if amount > self.bought[purchase]:
            return "above"
        said = self._post("purchases", -amount, kept=sum(self.remaining().values()))
        self.bought[purchase] -= amount if said == "posted" else 0
        return said

    def adjust(self, amount: int) -> str:
        self.expire()
        return self._post("adjustments", amount)

    def grant(self, grant_id: str, source: str, amount: int, priority: int, expires: int | None) -> str:
        """Grant credits that expire at the midnight that begins a day."""
        due = NEVER if expires is None else (expires, 0, 0)
        if due <= self.now:
            return "born expired"
        self.expire()
        self._cut()
        self._post(source, amount)
        self.lots[grant_id] = Lot(source, amount, priority, due, amount, due)
        return "made"

    def take_back(self, grant_id: str) -> str:
        """Void what is left of a lot."""
        self.expire()
        self._cut()
        lot = self.lots[grant_id]
        if not lot.remaining or lot.due <= self.now:
            return "ended"
        lot.due, lot.cause = self.now, "voided"
        self.expire()
        return "voided"

    def expire(self) -> None:
        """Take what is due, as far as holds in flight do not count on it."""
        now = self.now
        free = self.wallet.settled - self.wallet.held
        if free <= 0 or not any(lot.remaining and lot.due <= now for lot in self.lots.values()):
            return
        self._cut()
        for lot in sorted(self.lots.values(), key=lambda lot: lot.due):
            if lot.due <= now:
                taken = min(lot.remaining, free)
                free -= taken
                lot.remaining -= taken
                self._post("breakage" if lot.cause == "expired" else lot.source, -taken)

    def remaining(self) -> Mapping[str, int]:
        """Return what is left of each lot as of now."""
        losses = self._losses()
        return {name: lot.remaining - losses.get(name, 0) for name, lot in self.lots.items()}

    def _cut(self) -> None:
        for name, loss in self._losses().items():
            self.lots[name].remaining -= loss
        self.spent = 0

    def _losses(self) -> Mapping[str, int]:
        """Return what lots lost since the last cut: what was spent, or what the wallet no longer has."""
        total = sum(lot.remaining for lot in self.lots.values())
        left, losses = max(self.spent, total - self.wallet.settled, 0), dict[str, int]()
        for name, lot in sorted(self.lots.items(), key=lambda item: (item[1].priority, item[1].expires)):
            losses[name] = min(lot.remaining, left)
            left -= losses[name]
        return losses

    def _above(self, path: tuple[str, ...]) -> list[Account]:
        above = sorted((b for b in self.budgets.values() if b.target in path), key=lambda budget: budget.id)
        return [self.wallet, *(budget.window(self.day) for budget in above)]

    def _refusal(self, limits: list[Account], least: int) -> str:
        """Return why not even the least fits, if so; a budget that is used up may stop its target."""
        if any(account.budget and account.budget.disabled for account in limits):
            return "DISABLED"
        if least <= min(account.settled - account.held - account.floor for account in limits):
            return ""
        spent = min(limits, key=lambda account: account.settled - account.floor)
        if least <= spent.settled - spent.floor:
            return "IN_FLIGHT"
        if spent.budget and spent.budget.auto and least <= -spent.floor:
            spent.budget.disabled = True
        return "EXHAUSTED"

    def _hold(self, key: str, path: tuple[str, ...], ceiling: int, limits: list[Account]) -> Hold:
        hold = self.holds[key] = Hold(path, self.day, ceiling, limits)
        for account in limits:
            account.held += ceiling
        return hold

    def _close(self, hold: Hold, charge: int, phase: str) -> None:
        for account in hold.limits:
            account.held -= hold.ceiling if hold.phase == "held" else 0
        self._take(hold, charge - hold.charged)
        hold.phase = phase

    def _take(self, hold: Hold, amount: int) -> None:
        hold.charged += amount
        self.spent += amount
        for account in hold.limits:
            account.settled -= amount

    def _post(self, source: str, amount: int, kept: int = 0) -> str:
        if amount < 0 and self.wallet.settled - self.wallet.held - kept + amount < 0:
            return "short"
        self.wallet.settled += amount
        self.by_hand[source] -= amount
        return "posted"

    @staticmethod
    def _disable_used_up(limits: list[Account]) -> None:
        for account in limits:
            if account.budget and account.budget.auto and account.used_up:
                account.budget.disabled = True
