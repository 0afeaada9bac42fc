"""Items for the ledger that wait to be sent or answered, bounded; no network in here."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mandate.ledger.v1 import charges_pb2

ITEMS_PER_MESSAGE_MAX = 500
UNANSWERED_MAX = 10_000
SWEEP_SECONDS = 0.1  # a timer for each of those who wait would cost more than looking through all of them so often

Question: TypeAlias = "charges_pb2.PlaceHold | charges_pb2.SettleHold | charges_pb2.VoidHold"
Answer: TypeAlias = "charges_pb2.HoldAnswer | charges_pb2.SettleAnswer | charges_pb2.VoidAnswer"
Key: TypeAlias = "tuple[type[Answer], str]"


@dataclass(slots=True, eq=False)
class Item:
    """One question; a None answer says that its holder lapsed before there was one."""

    key: Key
    question: Question
    answer: asyncio.Future[Answer | None]  # for whoever waits, who may leave it
    until: float  # when that gets TimeoutError instead, by the loop's clock
    holder_id: str = ""
    sent: bool = False
    tries: int = 0  # how often the ledger could not take it
    instead: Callable[[], charges_pb2.SettleHold] | None = None  # asked once, where the ledger refuses the question


class Inflight:
    """What is unanswered, in the order in which it came."""

    def __init__(self) -> None:
        self._unanswered: OrderedDict[Key, Item] = OrderedDict()
        self._unsent: deque[Item] = deque()  # emptied into messages; holds at most what is unanswered
        self._waiting_holds: deque[Item] = deque()
        self._woken = asyncio.Event()
        self._sweep: asyncio.TimerHandle | None = None
        self._unsettled: set[Key] = set()  # the settles and voids of what is unanswered
        self._settled: asyncio.Event | None = None  # there while somebody waits for the last of them

    @property
    def full(self) -> bool:
        """Return whether no more holds may be added; settles and voids of those that were always may."""
        return len(self._unanswered) >= UNANSWERED_MAX

    @property
    def waiting(self) -> bool:
        """Return whether something waits to be sent."""
        return bool(self._unsent or self._waiting_holds)

    def add_hold(self, question: charges_pb2.PlaceHold, holder_id: str, seconds: float) -> Item:
        """Add a wanted hold, waited for so long at most; it is sent once its holder has a lease."""
        return self._add((charges_pb2.HoldAnswer, question.request_id), question, seconds, holder_id)

    def add_settle(
        self, question: charges_pb2.SettleHold, instead: Callable[[], charges_pb2.SettleHold], seconds: float
    ) -> Item:
        """Add a settle, and what makes the one to ask where the ledger finds it wrong in itself."""
        item = self._add((charges_pb2.SettleAnswer, question.request_id), question, seconds)
        item.instead = instead
        return item

    def add_void(self, question: charges_pb2.VoidHold) -> Item:
        """Add a void, for which nobody waits."""
        return self._add((charges_pb2.VoidAnswer, question.request_id), question, math.inf)

    async def settled(self, seconds: float) -> int:
        """Wait until every settle and void is answered, at most so long; return how many are not."""
        if self._unsettled:
            self._settled = asyncio.Event()
            try:
                async with asyncio.timeout(seconds):
                    await self._settled.wait()
            except TimeoutError:
                pass
            finally:
                self._settled = None
        return len(self._unsettled)

    def drop(self, item: Item) -> None:
        """Forget an item that nobody waits for."""
        self._take(item.key)

    def item(self, answer: Answer) -> Item | None:
        """Return the item that an answer belongs to; None when nobody waits for it."""
        return self._unanswered.get((type(answer), answer.request_id))

    def resolve(self, answer: Answer) -> None:
        """Hand an answer to whoever waits for it."""
        item = self._take((type(answer), answer.request_id))
        if item is not None and not item.answer.done():
            item.answer.set_result(answer)

    def fail_holds(self, holder_id: str) -> None:
        """Answer every hold that was sent with None: its holder lapsed. Those not yet sent pass to the next holder."""
        for item in [item for item in self._unanswered.values() if isinstance(item.question, charges_pb2.PlaceHold)]:
            if not item.sent:
                item.holder_id = holder_id
                continue
            self.drop(item)
            self.add_void(
                charges_pb2.VoidHold(
                    request_id=item.question.request_id, agent_id=item.question.agent_id, reason="holder lapsed"
                )
            )
            if not item.answer.done():
                item.answer.set_result(None)

    def send_again(self, item: Item) -> None:
        """Send one item once more, unless it was answered meanwhile."""
        if self._unanswered.get(item.key) is item:
            self._queue(item)

    def send_all_again(self) -> None:
        """Send everything unanswered on a new stream."""
        self._unsent.clear()
        self._waiting_holds.clear()
        for item in self._unanswered.values():
            self._queue(item)

    def next_message(self, *, with_holds: bool) -> charges_pb2.ChargeRequest | None:
        """Take up to 500 items out of the queue, settles and voids first."""
        message: charges_pb2.ChargeRequest | None = None
        for queue in (self._unsent, self._waiting_holds) if with_holds else (self._unsent,):
            for _ in range(min(len(queue), ITEMS_PER_MESSAGE_MAX)):
                item = queue.popleft()
                if self._unanswered.get(item.key) is item:
                    message = message or charges_pb2.ChargeRequest()
                    item.sent = True
                    _append(message, item.question)
        return message

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to send, at most so long."""
        self._woken.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        """End the wait."""
        self._woken.set()

    def _take(self, key: Key) -> Item | None:
        self._unsettled.discard(key)
        if self._settled is not None and not self._unsettled:
            self._settled.set()
        return self._unanswered.pop(key, None)

    def _add(self, key: Key, question: Question, seconds: float, holder_id: str = "") -> Item:
        loop = asyncio.get_running_loop()
        item = self._unanswered[key] = Item(key, question, loop.create_future(), loop.time() + seconds, holder_id)
        if not isinstance(question, charges_pb2.PlaceHold):
            self._unsettled.add(key)
        self._queue(item)
        if self._sweep is None:
            self._sweep = loop.call_later(SWEEP_SECONDS, self._sweep_now, loop)
        return item

    def _sweep_now(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell those who have waited too long."""
        now = loop.time()
        for item in self._unanswered.values():
            if item.until <= now and not item.answer.done():
                item.answer.set_exception(TimeoutError())
                item.answer.exception()  # seen, though whoever waited may be leaving in this moment
        self._sweep = loop.call_later(SWEEP_SECONDS, self._sweep_now, loop) if self._unanswered else None

    def _queue(self, item: Item) -> None:
        (self._waiting_holds if isinstance(item.question, charges_pb2.PlaceHold) else self._unsent).append(item)
        self.wake()


def _append(message: charges_pb2.ChargeRequest, question: Question) -> None:
    if isinstance(question, charges_pb2.PlaceHold):
        message.holds.append(question)
    elif isinstance(question, charges_pb2.SettleHold):
        message.settles.append(question)
    else:
        message.voids.append(question)
