"""Keep a table of processes running: in order, restarted when they die, stopped in reverse, never outliving us.

It knows nothing of Mandate: which processes there are is in `up.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mesh.children import Account, leashed
from mesh.warm import WORD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence

State = Literal["waiting", "starting", "ready", "restarting", "stopping", "stopped"]

START_SECONDS = 60.0  # until first ready, from the moment that all needs are
FIRST_TRIES = 3  # a process that ends this often before it was ever ready has a fault that waiting won't cure
RESTART_FIRST_SECONDS = 0.2
RESTART_MAX_SECONDS = 10.0
STEADY_SECONDS = 30.0  # one that ran this long restarts fast again
POLL_SECONDS = 0.05
POLL_MAX_SECONDS = 0.25
LINE_MAX_BYTES = 65_536
TAIL_LINES = 20
DRAIN_SECONDS = 1.0


async def _nothing() -> None:
    return None


class StartError(Exception):
    """A process didn't become ready the first time; the text names it and ends with its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One row of the table; `needs` names other rows, all replicas of which must be ready first."""

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    replica: int = 0
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    account: Account | None = None
    descriptors: tuple[int, ...] = ()
    warm: bool = False  # started at once, told by `mesh.warm`'s word when its needs are ready
    prepare: Callable[[], Awaitable[None]] = _nothing  # before each start; may raise StartError
    settle: Callable[[], Awaitable[None]] = _nothing  # once, between first ready and those who need it
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL  # when the supervisor is killed
    grace_seconds: float = 30.0


@dataclass(slots=True)
class Keeper:
    """What is known of one process now; only the supervisor changes it."""

    process: Process
    label: str
    state: State = "waiting"
    restarts: int = 0
    child: asyncio.subprocess.Process | None = None
    pumps: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])  # one a child whose output is open
    was_ready: asyncio.Event = field(default_factory=asyncio.Event)
    tail: deque[str] = field(default_factory=lambda: deque[str](maxlen=TAIL_LINES))

    @property
    def pid(self) -> int | None:
        """Return the pid while the process runs."""
        return self.child.pid if self.child and self.child.returncode is None else None


class Supervisor:
    """Run a table until SIGINT or SIGTERM; a second signal kills."""

    def __init__(
        self, table: Sequence[Process], say: Callable[[str, str], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        several = {process.name for process in table if process.replica}
        self.keepers = [Keeper(process, _label(process, several)) for process in table]
        self.stopping = asyncio.Event()
        self._layers = _layers(self.keepers)
        self._say = say
        self._changed = changed

    async def run(self, started: Callable[[], Awaitable[None]] = _nothing) -> None:
        """Start all, call `started` when all are ready, stop all on a signal; raise StartError when one can't start."""
        failure: StartError | None = None
        with self._signals():
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._keep(keeper)) for keeper in self.keepers]
                    tasks.append(group.create_task(self._announce(started)))
                    await self.stopping.wait()
                    for task in tasks:
                        task.cancel()
            except* StartError as errors:
                failure = next(_leaves(errors))
            finally:
                self.stopping.set()
                await self._stop_all()
        if failure:
            raise failure

    async def _announce(self, started: Callable[[], Awaitable[None]]) -> None:
        for keeper in self.keepers:
            await keeper.was_ready.wait()
        await started()

    async def _keep(self, keeper: Keeper) -> None:
        loop = asyncio.get_running_loop()
        tries, delay = 0, RESTART_FIRST_SECONDS
        if not keeper.process.warm:
            await self._needs(keeper)
        while True:
            began = loop.time()
            self._move(keeper, "starting")
            try:
                await keeper.process.prepare()
            except StartError as error:
                if not keeper.was_ready.is_set():
                    raise
                ending = str(error)
            else:
                ending = await self._live(keeper)
            tries += 1
            if not keeper.was_ready.is_set() and tries >= FIRST_TRIES:
                raise _start_error(keeper, f"ended {tries} times before it was ready ({ending})")
            if loop.time() - began > STEADY_SECONDS:
                delay = RESTART_FIRST_SECONDS
            keeper.restarts += 1
            self._move(keeper, "restarting")
            self._say(keeper.label, f"{ending}; starts again in {delay:.1f} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_MAX_SECONDS)

    async def _live(self, keeper: Keeper) -> str:
        """Run the process once and return how it ended."""
        child = await self._spawn(keeper)
        async with asyncio.TaskGroup() as life:
            readiness = life.create_task(self._become_ready(keeper, child))
            code = await child.wait()
            readiness.cancel()
        _kill_group(child)
        await _drained(keeper)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    async def _spawn(self, keeper: Keeper) -> asyncio.subprocess.Process:
        process = keeper.process
        child = await asyncio.create_subprocess_exec(
            *leashed(process.argv, process.account, process.death_signal),
            stdin=subprocess.PIPE if process.warm else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(process.environment),
            pass_fds=process.descriptors,
            start_new_session=True,
        )
        keeper.child = child
        pump = asyncio.create_task(self._pump(keeper, child))
        keeper.pumps.add(pump)
        pump.add_done_callback(keeper.pumps.discard)
        self._changed()
        return child

    async def _become_ready(self, keeper: Keeper, child: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        if child.stdin:
            await self._needs(keeper)
            child.stdin.write(WORD)
            child.stdin.close()
        began, pause = loop.time(), POLL_SECONDS
        while not await keeper.process.ready():
            if not keeper.was_ready.is_set() and loop.time() - began > START_SECONDS:
                raise _start_error(keeper, f"was not ready within {START_SECONDS:.0f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_SECONDS)
        if not keeper.was_ready.is_set():
            await keeper.process.settle()
        keeper.was_ready.set()
        self._move(keeper, "ready")
        self._say(keeper.label, f"ready in {loop.time() - began:.1f} s")

    async def _needs(self, keeper: Keeper) -> None:
        for other in self.keepers:
            if other.process.name in keeper.process.needs:
                await other.was_ready.wait()

    async def _pump(self, keeper: Keeper, child: asyncio.subprocess.Process) -> None:
        """Say each line of the child, cut where it is too long, until its last writer ends."""
        assert child.stdout is not None  # noqa: S101  # it was asked for in _spawn
        rest = b""
        while chunk := await child.stdout.read(LINE_MAX_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_MAX_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._hear(keeper, line)
        if rest:
            self._hear(keeper, rest)

    def _hear(self, keeper: Keeper, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        keeper.tail.append(text)
        self._say(keeper.label, text)

    def _move(self, keeper: Keeper, state: State) -> None:
        keeper.state = state
        self._changed()

    async def _stop_all(self) -> None:
        for layer in reversed(self._layers):
            await asyncio.gather(*(self._stop(keeper) for keeper in layer))

    async def _stop(self, keeper: Keeper) -> None:
        child = keeper.child
        if child and child.returncode is None:
            self._move(keeper, "stopping")
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(keeper.process.stop_signal)
            try:
                async with asyncio.timeout(keeper.process.grace_seconds):
                    await child.wait()
            except TimeoutError:
                self._say(keeper.label, f"did not stop within {keeper.process.grace_seconds:.0f} s; killed")
        if child:
            _kill_group(child)
            await child.wait()
            await _drained(keeper)
        self._move(keeper, "stopped")

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def asked() -> None:
            if self.stopping.is_set():
                for keeper in self.keepers:
                    if keeper.child:
                        _kill_group(keeper.child)
            self.stopping.set()

        for sign in handled:
            loop.add_signal_handler(sign, asked)
        try:
            yield
        finally:
            for sign in handled:
                loop.remove_signal_handler(sign)


def _layers(keepers: Sequence[Keeper]) -> list[list[Keeper]]:
    """Group processes so that each needs only those of earlier groups; raise ValueError when that can't be."""
    left, placed, layers = list(keepers), set[str](), list[list[Keeper]]()
    while left:
        names = {keeper.process.name for keeper in left}
        layer = [keeper for keeper in left if not names & set(keeper.process.needs)]
        missing = {need for keeper in layer for need in keeper.process.needs} - placed
        if not layer or missing:
            raise ValueError(f"needs that can't be met: {', '.join(sorted(missing or names))}")
        placed |= {keeper.process.name for keeper in layer}
        left = [keeper for keeper in left if keeper not in layer]
        layers.append(layer)
    return layers


def _label(process: Process, several: set[str]) -> str:
    return f"{process.name}.{process.replica}" if process.name in several else process.name


def _start_error(keeper: Keeper, problem: str) -> StartError:
    last = "".join(f"\n  {line}" for line in keeper.tail)
    return StartError(f"{keeper.label} {problem}{last}")


def _leaves(group: BaseExceptionGroup[StartError]) -> Iterator[StartError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _drained(keeper: Keeper) -> None:
    """Wait for what the ended process wrote last; a descendant may hold its output open for longer."""
    if keeper.pumps:
        await asyncio.wait(keeper.pumps, timeout=DRAIN_SECONDS)


def _kill_group(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
