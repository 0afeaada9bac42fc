"""The rules of the house that no other tool holds: sizes, names, tables in docs/, what is committed."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from docs import tables
from mesh import settings

ROOT = Path(__file__).resolve().parent.parent
CODE = {".py", ".sql", ".proto", ".ts", ".tsx", ".css", ".yaml", ".toml"}
SKIPPED = {".git", ".venv", ".mandate", "node_modules", "__pycache__", "static", "dist", "build"}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 400, 60
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "manager", "managers", "misc"}
REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
REASON_IS_GIVEN = {"mesh/errors.py", "mesh/faults.py"}  # they repeat a reason that came over the wire
MESSAGES = {"request", "response", "message", "answer", "reply"}
REGISTRIES = re.compile(
    r"(?:pypi|pythonhosted|npmjs|yarnpkg|crates|docker|ghcr|gcr|quay|golang|jfrog|artifactory)\.(?:org|com|io|dev)/"
    r"|--(?:extra-)?index-url|--registry|--find-links|--trusted-host"
)


def _files(*suffixes: str) -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.suffix in suffixes
        and not SKIPPED & set(path.relative_to(ROOT).parts)
        and "_pb2" not in path.name
        and path.is_file()
    ]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _committed() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


PYTHON = {path: ast.parse(path.read_text(), str(path)) for path in _files(".py")}
SHIPPED = {path: tree for path, tree in PYTHON.items() if path.relative_to(ROOT).parts[0] in tables.PACKAGES}


def test_no_file_has_more_than_400_lines() -> None:
    lines = {_name(path): len(path.read_text().splitlines()) for path in _files(*CODE)}
    assert not {name: count for name, count in lines.items() if count > FILE_LINES_MAX}


def test_no_function_has_more_than_60_lines() -> None:
    long = [
        f"{_name(path)}:{node.lineno} {node.name}"
        for path, tree in PYTHON.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long


def test_no_module_or_folder_is_called_by_a_name_that_says_nothing() -> None:
    parts = {_name(path): (*path.relative_to(ROOT).parts[:-1], path.stem) for path in _files(".py", ".ts", ".tsx")}
    assert not [name for name, found in parts.items() if BANNED_NAMES & set(found)]


def test_every_module_with_code_takes_annotations_from_the_future() -> None:
    lacking = [
        _name(path)
        for path, tree in PYTHON.items()
        if tree.body[1 if ast.get_docstring(tree) is not None else 0 :]
        and not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    ]
    assert not lacking


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_tables_in_docs_are_what_the_code_says(name: str) -> None:
    path, table = tables.TABLES[name]
    found = tables.between(path.read_text(), name)
    assert found is not None, f"{_name(path)} lost its markers for {name}"
    assert found[0] == table(), "run `make docs`"


def test_the_example_of_settings_is_what_the_code_says() -> None:
    assert tables.EXAMPLE.read_text() == tables.example(), "run `make docs`"


def test_every_setting_says_in_a_sentence_what_it_means() -> None:
    docs = {reading.spec.name: reading.spec.doc for reading in settings.readings(settings.Source({}, {}))}
    assert not {name: doc for name, doc in docs.items() if not doc.endswith(".")}


def test_every_error_reason_is_a_literal_in_capitals() -> None:
    found = [made for made in tables.reasons() if made.place.rpartition(":")[0] not in REASON_IS_GIVEN]
    assert len(found) > 10
    assert not [made.place for made in found if made.reason is None or not REASON.fullmatch(made.reason)]


def test_every_error_reason_means_one_kind_of_error() -> None:
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for made in tables.reasons():
        if made.reason is not None:
            kinds[made.reason].add(made.kind)
    assert not {reason: found for reason, found in kinds.items() if len(found) > 1}


def test_no_message_is_handed_to_a_log() -> None:
    """Python's protobuf shows fields marked debug_redact, so a logged message would show its secrets."""
    logged = [
        f"{_name(path)}:{node.lineno}"
        for path, tree in SHIPPED.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
        for value in (*node.args, *(keyword.value for keyword in node.keywords))
        if isinstance(value, ast.Name) and value.id in MESSAGES
    ]
    assert not logged


def test_generated_code_is_not_committed() -> None:
    assert not [_name(path) for path in _committed() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)]


def test_no_committed_file_names_a_package_registry() -> None:
    texts = [path for path in _committed() if path.suffix not in {".binpb", ".png", ".ico", ".woff2"}]
    naming = [_name(path) for path in texts if REGISTRIES.search(path.read_text(errors="replace"))]
    assert naming == [_name(Path(__file__))]
