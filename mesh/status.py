"""What runs, as the supervisor writes it to the home and `mandate status` reads it; nothing here starts or stops."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mesh.home import write_private

if TYPE_CHECKING:
    from mesh.home import Home

STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a process listens on; an embedded server's own port stands under `tcp`."""

    grpc: int | None = None
    metrics: int | None = None
    http: int | None = None
    tcp: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process; `pid` is None while it doesn't run."""

    name: str
    replica: int
    pid: int | None
    state: str
    ports: Ports
    restarts: int


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The whole mesh: `starting`, `ready`, `degraded` (something restarts) or `stopping`."""

    state: str
    pid: int
    home: str
    gateway_url: str
    graphql_url: str
    portal_url: str
    processes: tuple[ProcessStatus, ...]

    def to_json(self) -> str:
        """Return the text of `mandate status --json`."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """Return the text of `mandate status`."""
        rows = [("SERVICE", "PID", "STATE", "PORTS", "RESTARTS")]
        for process in self.processes:
            ports = asdict(process.ports)
            listed = " ".join(f"{kind}:{port}" for kind, port in ports.items() if port)
            name = f"{process.name}.{process.replica}"
            rows.append((name, str(process.pid or "-"), process.state, listed, str(process.restarts)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", f"mesh     {self.state}", f"gateway  {self.gateway_url}", *self._people()])

    def _people(self) -> list[str]:
        return [f"graphql  {self.graphql_url}", f"portal   {self.portal_url}", f"home     {self.home}"]


def write(home: Home, status: MeshStatus) -> None:
    """Tell others what runs; a reader sees the old text or the new one."""
    write_private(home.run / STATE, status.to_json().encode(), durable=False)


def clear(home: Home) -> None:
    """Say that nothing runs."""
    (home.run / STATE).unlink(missing_ok=True)


def recorded(home: Home) -> MeshStatus | None:
    """Return what was written last, by a mesh that runs or one that was killed; None for what another version wrote."""
    try:
        raw: dict[str, Any] = json.loads((home.run / STATE).read_text())
        listed = raw.pop("processes")
        processes = tuple(ProcessStatus(ports=Ports(**process.pop("ports")), **process) for process in listed)
        return MeshStatus(**raw, processes=processes)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
