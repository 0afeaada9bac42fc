"""The state folder `MANDATE_HOME`: its layout, its lock and the secrets made in it once.

What runs from it is in `up.py`; certificates are in `certificates.py`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mesh.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Generator

FORMAT = 1
RECORD = "home.json"
FOLDERS = ("secrets", "keys", "tls", "logs", "run")
OUTSIDE = Path("/var/lib/mandate")  # root's homes keep PostgreSQL's data here: it runs as a user who can't enter them
INSTANCE_DIGITS = 8
SOCKETS_PREFIX = "mandate-"
SOCKET_PATH_MAX = 100  # bytes; AF_UNIX takes 103 (macOS) to 107 (Linux)
SOCKET_NAME = ".s.PGSQL.65535.lock"
LOCK_WAIT_SECONDS = 1.0


class HomeError(Exception):
    """The state folder can't be used; the text says in one line why."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a home knows of itself; `data` and `sockets` may lie outside it."""

    format: int
    instance: str
    data: str
    sockets: str


@dataclass(frozen=True, slots=True)
class Home:
    """An open state folder, private to one user."""

    path: Path
    record: Record

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the home at `path`, made when it is missing or empty; raise HomeError before anything is touched."""
        path = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow a link the user chose
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            record = _read(path) or _create(path)
            for folder in FOLDERS:
                (path / folder).mkdir(mode=0o700, exist_ok=True)
            home = cls(path, record)
            return cls(path, home._with_sockets())
        except OSError as error:
            raise HomeError(f"{path}: cannot be used as a state folder ({error.strerror})") from error

    @classmethod
    def existing(cls, path: Path) -> Self | None:
        """Return the home at `path` as it is, or None where there is none; nothing is made or changed."""
        path = Path(os.path.abspath(path))  # noqa: PTH100
        try:
            record = _read(path) if path.is_dir() else None
        except OSError as error:
            raise HomeError(f"{path}: cannot be read ({error.strerror})") from error
        return cls(path, record) if record else None

    @property
    def instance(self) -> str:
        """Eight hex digits that tell this home from every other."""
        return self.record.instance

    @property
    def data(self) -> Path:
        """Folder of the embedded servers' data, which may lie outside the home."""
        return self.path / self.record.data

    @property
    def sockets(self) -> Path:
        """Short folder for UNIX sockets, which may lie outside the home."""
        return self.path / self.record.sockets

    @property
    def tls(self) -> Path:
        """Folder of the certificates."""
        return self.path / "tls"

    @property
    def keys(self) -> Path:
        """Folder of the key files."""
        return self.path / "keys"

    @property
    def logs(self) -> Path:
        """Folder of the log of a detached mesh."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """Folder of what is true only while the mesh runs."""
        return self.path / "run"

    def secret(self, name: str) -> Secret:
        """Return the generated secret `name`, made on first use."""
        return Secret(_once(self.path / "secrets" / name, secrets.token_urlsafe(24)))

    def ensure_key(self, name: str) -> Path:
        """Return the file of key `name`: 32 random bytes in base64, made on first use."""
        path = self.keys / f"{name}.key"
        _once(path, base64.b64encode(secrets.token_bytes(32)).decode())
        return path

    def ensure_keyring(self, name: str) -> Path:
        """Return the file of keyring `name`: JSON with one primary key of 32 random bytes, made on first use."""
        path = self.keys / f"{name}.json"
        key = {"id": f"{name}-1", "key": base64.b64encode(secrets.token_bytes(32)).decode(), "state": "primary"}
        _once(path, json.dumps({"keys": [key]}, indent=2))
        return path

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the home for this process; raise HomeError that says who holds it."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HomeError(f"{self.path}: cannot be written ({error.strerror})") from error
        with os.fdopen(descriptor, "r+") as file:
            _flock(file.fileno(), self)
            if not _is_still(file.fileno(), self.path / "lock"):
                raise HomeError(f"{self.path}: was removed meanwhile; start again")
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def holder(self) -> int | None:
        """Return the pid of the process that holds this home, 0 when it can't be told, None when nobody does."""
        try:
            file = (self.path / "lock").open()
        except FileNotFoundError:
            return None
        with file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
            return None

    def wipe(self) -> None:
        """Remove the home and what it keeps outside; the caller holds the lock."""
        for path in (self.data, self.sockets, self.path):
            if path.exists():
                shutil.rmtree(path)

    def _with_sockets(self) -> Record:
        """Return the record with a socket folder that exists and is ours (a restart of the machine clears /tmp)."""
        if self.sockets == self.run or _is_private(self.sockets):
            return self.record
        record = Record(FORMAT, self.instance, self.record.data, _short_folder())
        _write_record(self.path, record)
        return record


def write_private(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `content` in one step, readable as `mode` says."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> Record | None:
    """Return the record of the home at `path`, None for an empty folder; anything else there is refused."""
    try:
        raw = json.loads((path / RECORD).read_text())
        found = raw.get("format")
    except FileNotFoundError:
        if any(not entry.name.startswith(f".{RECORD}") for entry in path.iterdir()):
            raise HomeError(
                f"{path}: is not empty and not a mandate home (no {RECORD}); choose another MANDATE_HOME"
            ) from None
        return None
    except (ValueError, AttributeError) as error:
        raise HomeError(f"{path}: {RECORD} is damaged ({error})") from None
    if found != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "an unknown"
        raise HomeError(f"{path}: has {age} format ({found!r}; this version reads {FORMAT})")
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise HomeError(f"{path}: belongs to user {owner} and you are user {os.geteuid()}")
    try:
        record = Record(**raw)
    except TypeError:
        record = None
    if record is None or not _is_plausible(record):
        raise HomeError(f"{path}: {RECORD} is damaged")
    return record


def _is_plausible(record: Record) -> bool:
    """Say whether the folders are ones that we make; `wipe` removes them."""
    data = record.data in {"data", str(OUTSIDE / record.instance)}
    sockets = record.sockets == "run" or Path(record.sockets).name.startswith(SOCKETS_PREFIX)
    return len(record.instance) == INSTANCE_DIGITS and record.instance.isalnum() and data and sockets


def _create(path: Path) -> Record:
    path.chmod(0o700)
    instance = secrets.token_hex(INSTANCE_DIGITS // 2)
    outside = os.geteuid() == 0
    short = len(os.fsencode(path / "run" / SOCKET_NAME)) <= SOCKET_PATH_MAX
    record = Record(
        format=FORMAT,
        instance=instance,
        data=str(OUTSIDE / instance) if outside else "data",
        sockets="run" if short and not outside else _short_folder(),
    )
    _write_record(path, record)
    return record


def _short_folder() -> str:
    """Make a private folder with a path that sockets can have, outside TMPDIR where that is too long."""
    found = tempfile.gettempdir()
    length = len(os.fsencode(Path(found) / f"{SOCKETS_PREFIX}12345678" / SOCKET_NAME))
    return tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=found if length <= SOCKET_PATH_MAX else "/tmp")  # noqa: S108  # private: mkdtemp


def _write_record(path: Path, record: Record) -> None:
    write_private(path / RECORD, json.dumps(asdict(record), indent=2).encode())


def _is_private(path: Path) -> bool:
    """Say whether `path` is a folder that only its owner can enter, whoever that is: PostgreSQL's user may own it."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == stat.S_IRWXU


def _once(path: Path, fresh: str) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        write_private(path, fresh.encode() + b"\n")
        return fresh


def _is_still(descriptor: int, path: Path) -> bool:
    """Say whether an open file is the one at `path`: while we waited for its lock, its holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _flock(descriptor: int, home: Home) -> None:
    """Take the lock; the short wait covers a `status` that looks at it just now."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = home.holder()
                raise HomeError(
                    f"{home.path}: is in use by process {holder or 'unknown'} (mandate status, mandate down)"
                ) from None
            time.sleep(0.05)
        else:
            return
