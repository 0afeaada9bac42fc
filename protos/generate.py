"""Generate Python from the contracts: `python protos/generate.py`, and at every build through hatch.

Each module lands beside its .proto and is ignored by git; proto package and Python package are one name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
OUTPUTS = {"python": "", "grpc_python": "", "mypy": "quiet:", "mypy_grpc": "quiet:"}


def generate() -> None:
    """Run protoc over every contract and drop what earlier contracts left behind."""
    import grpc_tools
    from grpc_tools import protoc

    wellknown = Path(grpc_tools.__file__).parent / "_proto"
    contracts = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.proto"))
    fresh = {ROOT / path.with_suffix("") for path in contracts}
    for stale in ROOT.rglob("*_pb2*.py*"):
        if stale.with_name(stale.name.split("_pb2")[0]) not in fresh:
            stale.unlink()
    outputs = [f"--{kind}_out={prefix}{ROOT}" for kind, prefix in OUTPUTS.items()]
    arguments = ["protoc", f"-I{ROOT}", f"-I{wellknown}", *outputs, *map(str, contracts)]
    if status := protoc.main(arguments):
        raise SystemExit(status)


class ContractsHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling gives no type argument
    """Hatch calls this before it collects files for a wheel or an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate()


if __name__ == "__main__":
    generate()
