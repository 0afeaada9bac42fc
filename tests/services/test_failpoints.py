from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh import failpoints
from mesh.settings import Runtime, SettingsError


@pytest.fixture
def orders(tmp_path: Path) -> Iterator[Path]:
    """Have this process heed a file, until the test ends."""
    path = tmp_path / "orders"
    failpoints.arm(Runtime(failpoint_file=path))
    yield path
    failpoints.arm(Runtime())


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_whom_the_file_names_is_killed_by_whoever_reaches_its_point(
    orders: Path, victim: subprocess.Popen[bytes]
) -> None:
    orders.write_text(f"here {victim.pid}")
    failpoints.reach("here")
    assert victim.wait(5) == -signal.SIGKILL
    assert float(orders.with_name("orders.reached").read_text()) > 0


def test_another_point_kills_nobody(orders: Path, victim: subprocess.Popen[bytes]) -> None:
    orders.write_text(f"here {victim.pid}")
    failpoints.reach("there")
    assert victim.poll() is None
    assert orders.exists()


def test_an_order_is_carried_out_once(orders: Path, victim: subprocess.Popen[bytes]) -> None:
    orders.write_text(f"here {victim.pid}")
    failpoints.reach("here")
    victim.wait(5)
    orders.with_name("orders.reached").unlink()
    failpoints.reach("here")
    assert list(orders.parent.iterdir()) == []


def test_pid_0_is_whoever_reaches_the_point(orders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    def kill(pid: int, _: int) -> None:
        killed.append(pid)

    monkeypatch.setattr(failpoints.os, "kill", kill)
    orders.write_text("here 0")
    failpoints.reach("here")
    assert killed == [os.getpid()]


def test_production_refuses_to_start_with_a_file_of_failpoints(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MANDATE_FAILPOINT_FILE"):
        failpoints.arm(replace(Runtime(environment="production"), failpoint_file=tmp_path / "orders"))


def test_without_a_file_a_point_is_nothing() -> None:
    failpoints.arm(Runtime())
    failpoints.reach("here")
