"""The command over stand-ins of the services: packages of the same names that serve health and settings alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh import children, cli
from mesh.services import SERVICES

SETTINGS = """
from __future__ import annotations
from dataclasses import dataclass
from mesh.secret import Secret
from mesh.settings import setting

@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    database_url: Secret | None = setting("MANDATE_{upper}_DATABASE_URL", None, "Where its schema is.")
    peer_key: Secret | None = setting("{upper}_PEER_KEY", None, "A secret that this service alone reads.")
"""
MAIN = "from standin import main\nif __name__ == '__main__':\n    main('{name}')\n"
STANDIN = """
import asyncio, os, signal, socket
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from mesh import ports
from mesh.settings import Runtime, load
from mesh.tls import Certificates

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    names = " ".join(sorted(os.environ)).encode()
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\nconnection: close\\r\\n\\r\\n%s" % (len(names), names))
    await writer.drain()
    writer.close()

async def run(name):
    runtime = load(Runtime)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(answer, runtime.host, ports.metrics_port(name, runtime))
    if runtime.http_fd:
        await asyncio.start_server(answer, sock=socket.socket(fileno=runtime.http_fd))
    if name != "edge":
        server, health = grpc.aio.server(), health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        address = f"{runtime.host}:{ports.grpc_port(name, runtime)}"
        server.add_secure_port(address, Certificates(runtime.tls, name).server())
        await server.start()
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
    await stop.wait()

def main(name):
    asyncio.run(run(name))
"""


@dataclass(frozen=True)
class Machine:
    """A folder with stand-in services, free ports and the command."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        environment = {**self.environment, **more}
        return subprocess.Popen(
            [sys.executable, "-m", "mesh", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def mandate(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        with self.start(*arguments, **more) as process:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err

    def status(self) -> dict[str, Any]:
        return json.loads(self.mandate("status", "--json")[1])

    def port(self, offset: int) -> int:
        return int(self.environment["MANDATE_BASE_PORT"]) + offset


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    (folder / "standin.py").write_text(STANDIN)
    for service in SERVICES:
        package = folder / service.package
        (package / "migrations").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "settings.py").write_text(SETTINGS.format(upper=service.name.upper()))
        (package / "__main__.py").write_text(MAIN.format(name=service.name))
        (package / "migrations" / "0001_first.sql").write_text("CREATE TABLE first ();")
    ports = {f"MANDATE_{name}_PORT": str(children.free_port()) for name in ("GATEWAY", "EDGE")}
    found = Machine(
        folder,
        {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "MANDATE_BASE_PORT": str(free_base()), **ports},
    )
    yield found
    found.mandate("down", "--wipe")


def free_base() -> int:
    """Return the first of a hundred ports that are free now."""
    for base in range(20_000 + os.getpid() % 100 * 100, 32_000, 100):
        opened: list[socket.socket] = []
        try:
            for port in range(base, base + 100):
                opened.append(socket.socket())
                opened[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return base
        finally:
            for each in opened:
                each.close()
    raise RuntimeError("no hundred free ports in a row")


def get(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return connection.makefile().read()


def test_up_in_the_background_is_ready_when_it_returns_and_down_leaves_nothing(machine: Machine) -> None:
    code, out, err = machine.mandate("up", "--detach", "--replicas", "gateway=2")
    assert (code, err) == (0, "")
    assert out.startswith("ready\n")
    found = machine.status()
    assert found["state"] == "ready"
    processes = {(process["name"], process["replica"]): process for process in found["processes"]}
    assert len(processes) == len(SERVICES) + 3
    assert processes["gateway", 1]["ports"]["grpc"] == machine.port(41)
    assert {process["state"] for process in found["processes"]} == {"ready"}

    assert machine.mandate("up")[0] == 1
    assert machine.mandate("down")[0] == 0
    assert not any(children.is_running(process["pid"]) for process in found["processes"])
    assert machine.mandate("status")[0] == 3
    assert machine.mandate("down")[0] == 3


def test_a_service_is_told_what_it_declares_and_nothing_of_the_owner(machine: Machine) -> None:
    secrets = {"LEDGER_PEER_KEY": "sesame", "AWS_SECRET_ACCESS_KEY": "never", "EDGE_PEER_KEY": "other"}
    assert machine.mandate("up", "--detach", **secrets)[0] == 0
    names = get(machine.port(70))
    assert "LEDGER_PEER_KEY" in names
    assert "MANDATE_LEDGER_DATABASE_URL" in names
    others = ("MANDATE_DATABASE_URL", "MANDATE_VAULT_DATABASE_URL", "MANDATE_REDIS_URL")
    for name in ("AWS_SECRET", "EDGE_PEER_KEY", *others):
        assert name not in names
    assert machine.mandate("migrate")[0] == 0
    assert machine.mandate("down")[0] == 0


def test_a_killed_supervisor_takes_all_with_it_and_the_next_start_works(machine: Machine) -> None:
    assert machine.mandate("up", "--detach")[0] == 0
    found = machine.status()
    os.kill(found["pid"], signal.SIGKILL)
    assert machine.mandate("status")[0] == 3
    assert machine.mandate("up", "--detach")[0] == 0
    assert not any(children.is_running(process["pid"]) for process in found["processes"])
    assert machine.mandate("down")[0] == 0


def test_what_lies_where_it_is_started_is_not_imported(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('imported from the current folder')")
    command = [sys.executable, "-P", "-m", "mesh", "up", "--detach"]
    environment = machine.environment | {"MANDATE_HOME": str(tmp_path / "home")}
    started = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    wiped = machine.mandate("down", "--wipe", MANDATE_HOME=str(tmp_path / "home"))
    assert (started.returncode, started.stderr, wiped[0]) == (0, "", 0)


def test_a_state_that_cannot_be_written_ends_nothing(machine: Machine) -> None:
    assert machine.mandate("up", "--detach")[0] == 0
    run = machine.folder / ".mandate" / "run"
    vault = next(process["pid"] for process in machine.status()["processes"] if process["name"] == "vault")
    run.rename(run.with_name("away"))
    os.kill(vault, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            if "MANDATE_HOME" in get(machine.port(60)):
                break
    else:
        pytest.fail("the vault did not come back")
    run.with_name("away").rename(run)
    assert machine.mandate("down")[0] == 0


def test_interrupting_up_stops_all_and_is_no_failure(machine: Machine) -> None:
    with machine.start("up", "--only", "ledger") as process:
        try:
            assert process.stdout is not None
            while not process.stdout.readline().startswith("ready"):
                assert process.poll() is None
            assert [row["name"] for row in machine.status()["processes"]] == ["postgres", "ledger"]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("offset", "setting"), [(0, "PostgreSQL, MANDATE_BASE_PORT="), (31, "ledger gRPC"), (None, "MANDATE_GATEWAY_PORT")]
)
def test_a_port_in_use_is_named_before_anything_starts(machine: Machine, offset: int | None, setting: str) -> None:
    port = int(machine.environment["MANDATE_GATEWAY_PORT"]) if offset is None else machine.port(offset)
    with socket.create_server(("127.0.0.1", port)):
        code, out, err = machine.mandate("up", "--replicas", "ledger=2")
    assert (code, out) == (1, "")
    assert f"port {port}" in err
    assert setting in err
    assert "nothing was started" in err


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"MANDATE_BASE_PROT": "1"}, "MANDATE_BASE_PROT: no such setting"),
        ({"MANDATE_BASE_PORT": "80"}, "MANDATE_BASE_PORT: must be between"),
        ({"MANDATE_HOME": "/proc/sys/mandate"}, "cannot be used as a state folder"),
        ({"MANDATE_TLS_DIR": "/nowhere"}, "cannot be read"),
        ({"MANDATE_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "the database could not be prepared"),
        ({"MANDATE_DATABASE_URL": "postgresql://x:canary/1@127.0.0.1:1/x"}, "MANDATE_DATABASE_URL: is no URL"),
        ({"VAULT_PEER_KEY_FILE": "/nowhere"}, "VAULT_PEER_KEY_FILE: cannot be read"),
    ],
)
def test_what_is_wrong_with_the_setup_is_one_line(machine: Machine, more: dict[str, str], problem: str) -> None:
    code, _, err = machine.mandate("up", **more)
    assert code == 1
    assert problem in err
    assert err.startswith("mandate: ")
    assert err.count("\n") == 1
    assert "canary" not in err


def test_a_refusal_in_the_background_reads_as_one_in_the_foreground(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.port(30))):
        assert machine.mandate("up", "--detach") == machine.mandate("up")


@pytest.mark.parametrize(
    "arguments", [[], ["upp"], ["up", "--replicas", "gateway=0"], ["up", "--only", "x"], ["verify"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)


def test_settings_show_where_a_value_came_from_and_hide_secrets(machine: Machine) -> None:
    (machine.folder / ".env").write_text("MANDATE_REDIS_URL=redis://:open-sesame@127.0.0.1/0\n")
    code, out, _ = machine.mandate("settings", "--json", MANDATE_LOG_LEVEL="DEBUG")
    (machine.folder / ".env").unlink()
    found = {row["name"]: (row["value"], row["source"]) for row in json.loads(out)}
    assert code == 0
    assert found["MANDATE_REDIS_URL"] == ("(secret)", ".env")
    assert found["MANDATE_LOG_LEVEL"] == ("DEBUG", "environment")
    assert "open-sesame" not in out


def test_wiping_removes_the_home_and_refuses_what_is_none(machine: Machine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert machine.mandate("migrate", MANDATE_HOME=str(home))[0] == 0
    assert machine.mandate("down", "--wipe", MANDATE_HOME=str(home))[0] == 0
    assert not home.exists()
    (tmp_path / "thesis.tex").touch()
    assert machine.mandate("down", "--wipe", MANDATE_HOME=str(tmp_path))[0] == 1
    assert (tmp_path / "thesis.tex").exists()


def test_a_service_that_cannot_start_is_named_with_its_last_words(machine: Machine) -> None:
    main = machine.folder / "vault_svc" / "__main__.py"
    kept = main.read_text()
    main.write_text("raise SystemExit('the key is under the mat')")
    began = time.monotonic()
    code, _, err = machine.mandate("up", "--detach")
    main.write_text(kept)
    assert code == 1
    assert "vault ended 3 times" in err
    assert "the key is under the mat" in err
    assert time.monotonic() - began < 30
    assert machine.mandate("status")[0] == 3
