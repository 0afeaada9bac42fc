from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mesh import children
from mesh.supervisor import Keeper, Process, StartError, Supervisor

# Says its name, listens on a port until it is told to stop, and takes `slow` seconds to obey.
SERVER = """
import signal, socket, sys, time
name, port, slow = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
def stop(*_):
    print("stopping", flush=True); time.sleep(slow); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("hello from", name, flush=True)
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        server.accept()[0].close()
"""
BROKEN = "import sys; print('the cellar is flooded'); sys.exit(7)"


def listens(port: int) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return probe


def row(name: str, *needs: str, slow: float = 0, grace_seconds: float = 5, script: str = SERVER) -> Process:
    port = children.free_port()
    return Process(
        name=name,
        argv=(sys.executable, "-I", "-S", "-c", script, name, str(port), str(slow)),
        ready=listens(port),
        needs=needs,
        grace_seconds=grace_seconds,
    )


class Run:
    """A supervisor that runs as a task, and what it said."""

    def __init__(self, *table: Process) -> None:
        self.said: list[tuple[str, str]] = []
        self.supervisor = Supervisor(table, lambda name, line: self.said.append((name, line)))
        self.ready = asyncio.Event()
        self.task = asyncio.create_task(self.supervisor.run(self._started))

    async def _started(self) -> None:
        self.ready.set()

    def keeper(self, name: str) -> Keeper:
        return next(keeper for keeper in self.supervisor.keepers if keeper.label == name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # some of it is another process's state
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.supervisor.stopping.set()
        await self.task

    def order(self, line: str) -> list[str]:
        return [name for name, said in self.said if said.startswith(line)]


async def test_what_is_needed_is_ready_before_and_stopped_after() -> None:
    run = Run(row("roof", "wall"), row("wall", "floor"), row("floor"))
    async with asyncio.timeout(10):
        await run.ready.wait()
    await run.stop()
    assert run.order("hello") == ["floor", "wall", "roof"]
    assert run.order("stopping") == ["roof", "wall", "floor"]
    assert {keeper.state for keeper in run.supervisor.keepers} == {"stopped"}


async def test_a_killed_process_is_back_at_once() -> None:
    run = Run(row("floor"))
    await run.ready.wait()
    keeper = run.keeper("floor")
    killed = keeper.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    await run.until(lambda: keeper.restarts == 1 and keeper.state == "ready")
    assert keeper.pid not in {None, killed}
    await run.stop()
    assert ("floor", "killed by SIGKILL; starts again in 0.2 s") in run.said


async def test_one_that_was_ready_is_never_given_up(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    run = Run(row("floor", script=f"import os, sys; os.path.exists({str(flag)!r}) and sys.exit(7)\n{SERVER}"))
    await run.ready.wait()
    keeper = run.keeper("floor")
    flag.touch()
    os.kill(keeper.pid or 0, signal.SIGKILL)
    await run.until(lambda: keeper.restarts == 3)
    flag.unlink()
    await run.until(lambda: keeper.state == "ready")
    await run.stop()


async def test_a_process_that_cannot_start_stops_all_and_is_named_with_its_last_lines() -> None:
    run = Run(row("floor"), row("wall", "floor", script=BROKEN))
    with pytest.raises(StartError, match=r"wall ended 3 times .*exit 7[^$]*the cellar is flooded"):
        await run.task
    assert run.order("stopping") == ["floor"]


async def test_one_that_does_not_stop_in_its_grace_is_killed() -> None:
    run = Run(row("floor", slow=60, grace_seconds=0.3))
    await run.ready.wait()
    await run.stop()
    assert ("floor", "did not stop within 0 s; killed") in run.said
    assert run.keeper("floor").pid is None


async def test_a_long_line_is_cut_and_an_endless_one_does_not_fill_memory() -> None:
    chatter = "import sys; sys.stdout.write('x' * 200_000 + chr(10) + 'end' + chr(10)); sys.stdout.flush()\n" + SERVER
    run = Run(row("floor", script=chatter))
    await run.ready.wait()
    await run.stop()
    lines = [line for _, line in run.said if line.startswith("x")]
    assert sum(map(len, lines)) == 200_000
    assert max(map(len, lines)) <= 2 * 65_536
    assert ("floor", "end") in run.said


@pytest.mark.parametrize("needs", [("attic",), ("roof",)])
def test_a_table_that_can_never_start_is_refused(needs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="can't be met"):
        Supervisor([row("roof", *needs)], lambda _name, _line: None)


OUTER = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_supervisor import Supervisor, row
supervisor = Supervisor([row("floor", slow=60, grace_seconds=60)], lambda name, line: None)
async def started():
    print(supervisor.keepers[0].pid, flush=True)
asyncio.run(supervisor.run(started))
"""


@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (signal.SIGINT, signal.SIGINT)])
async def test_nothing_outlives_a_killed_supervisor_or_a_second_interrupt(signals: tuple[signal.Signals, ...]) -> None:
    with subprocess.Popen([sys.executable, "-c", OUTER], stdout=subprocess.PIPE, text=True) as outer:  # noqa: ASYNC220
        assert outer.stdout is not None
        pid = int(await asyncio.to_thread(outer.stdout.readline))
        for sign in signals:
            outer.send_signal(sign)
            await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            while outer.poll() is None or children.is_running(pid):  # noqa: ASYNC110  # other processes set no event
                await asyncio.sleep(0.02)
