"""Write what docs/ and .env.example say of settings and errors, from the code: `make docs`. Prose is not in here."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh import errors, settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mesh", *settings.PACKAGES)
KINDS = {kind.__name__: kind for kind in errors.KINDS.values()}


@dataclass(frozen=True, slots=True)
class Reason:
    """One place where an error is made."""

    reason: str | None  # None: not a literal
    kind: str
    message: str
    place: str


@dataclass(slots=True)
class Row:
    """All that the table says of a reason."""

    kinds: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)


def modules(packages: tuple[str, ...] = PACKAGES) -> list[Path]:
    """List the Python files of the packages, sorted."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def reasons() -> Iterator[Reason]:
    """Find every MeshError that the code makes."""
    for path in modules():
        tree = ast.parse(path.read_text(), str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (kind := _kind_of(node.func)) is not None:
                yield _reason(node, kind, f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.ClassDef) and (kind := next(filter(None, map(_kind_of, node.bases)), None)):
                yield from _made_by_a_kind_of_its_own(node, kind, str(path.relative_to(ROOT)))


def _made_by_a_kind_of_its_own(made: ast.ClassDef, kind: str, place: str) -> Iterator[Reason]:
    """Find the reason that a subclass gives to `super().__init__`; a kind itself passes on what it is given."""
    for node in ast.walk(made):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__":
            found = _reason(node, kind, f"{place}:{node.lineno}")
            if found.reason is not None:
                yield found


def _kind_of(function: ast.expr) -> str | None:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name if name in KINDS else None


def _reason(call: ast.Call, kind: str, place: str) -> Reason:
    first, second = (*call.args, None, None)[:2]
    literal = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return Reason(literal, kind, _text(second), place)


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


def reasons_table() -> str:
    """Return the table of reasons: its code on the wire, and what a caller reads."""
    rows: dict[str, Row] = {}
    for found in reasons():
        if found.reason is not None:
            row = rows.setdefault(found.reason, Row())
            row.kinds.add(KINDS[found.kind].code.name)
            row.messages.add(found.message)
    lines = [
        f"| `{reason}` | {', '.join(sorted(row.kinds))} | {_cell('; '.join(sorted(row.messages)))} |"
        for reason, row in sorted(rows.items())
    ]
    return "\n".join(["| reason | code | message |", "|---|---|---|", *lines])


def settings_table() -> str:
    """Return the table of settings with their defaults."""
    lines: list[str] = []
    for reading in settings.readings(settings.Source({}, {})):
        spec = reading.spec
        default = "(must be set)" if reading.origin == "missing" else f"`{reading.shown}`" if reading.shown else ""
        limits = f" {spec.minimum} to {spec.maximum}." if spec.minimum is not None and spec.maximum is not None else ""
        choices = f" One of {', '.join(spec.choices)}." if spec.choices else ""
        lines.append(f"| `{spec.name}` | {default} | {_cell(spec.doc + limits + choices)} |")
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def example() -> str:
    """Return .env.example: every setting, commented out, with its default."""
    blocks = ["# Copy to .env and uncomment what differs. A secret NAME may also be given as NAME_FILE, a path."]
    for reading in settings.readings(settings.Source({}, {})):
        blocks.append(f"# {reading.spec.doc}\n#{reading.spec.name}={reading.shown}")  # noqa: PERF401  # reads better
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


EXAMPLE = ROOT / ".env.example"
TABLES = {"settings": (ROOT / "docs/operations.md", settings_table), "reasons": (ROOT / "docs/api.md", reasons_table)}


def between(text: str, name: str) -> re.Match[str] | None:
    """Find a table in a document: what stands between its two markers."""
    return re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", text, re.DOTALL)


def main() -> int:
    """Write everything anew; 1 when a document lacks its markers."""
    EXAMPLE.write_text(example())
    for name, (path, table) in TABLES.items():
        text = path.read_text()
        place = between(text, name)
        if place is None:
            sys.stderr.write(f"{path}: no markers for {name}\n")
            return 1
        path.write_text(text[: place.start()] + table() + text[place.end() :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
