"""The only reader of the environment: names to frozen dataclasses, or one clear line about what is wrong.

A setting comes from the environment, else from the one `.env`, else from its default. A secret `NAME` may also be
given as `NAME_FILE`, the path of a file that holds it. A `MANDATE_` name that nobody declares stops the start.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import io
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from mesh.secret import Secret
from mesh.services import SERVICES

T = TypeVar("T")
PREFIX = "MANDATE_"
PACKAGES = tuple(service.package for service in SERVICES)
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
ENV_FILE = ".env"
PORT_MAX = 65_535


class SettingsError(Exception):
    """A setting is unknown, missing or has a bad value; the text names it and never shows a secret."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Spec:
    """What a setting is called, what it means and which values it takes."""

    name: str
    doc: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()


def setting(
    name: str,
    default: object,
    doc: str,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one field of a settings dataclass; `...` as default means that it must be given."""
    spec = Spec(name, doc, minimum, maximum, choices)
    if default is ...:
        return dataclasses.field(metadata={"spec": spec})
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What every process of the mesh reads."""

    home: Path = setting("MANDATE_HOME", Path(".mandate"), "State folder: data, keys, certificates, logs.")
    environment: str = setting(
        "MANDATE_ENVIRONMENT",
        "development",
        "Development adds gRPC reflection; production leaves it out.",
        choices=("development", "production"),
    )
    host: str = setting("MANDATE_HOST", "127.0.0.1", "Address that every server binds to.")
    base_port: int = setting("MANDATE_BASE_PORT", 7100, "First of the mesh's own ports.", minimum=1024, maximum=65000)
    gateway_port: int = setting("MANDATE_GATEWAY_PORT", 8080, "HTTP port of the gateway.", minimum=1, maximum=65535)
    edge_port: int = setting("MANDATE_EDGE_PORT", 8000, "HTTP port of the edge.", minimum=1, maximum=65535)
    public_host: str = setting(
        "MANDATE_PUBLIC_HOST", "127.0.0.1", "Host name in the URLs that people and agents are told."
    )
    replica: int = setting("MANDATE_REPLICA", 0, "Which replica of its service this process is.", minimum=0, maximum=9)
    http_fd: int | None = setting(
        "MANDATE_HTTP_FD", None, "Open listening socket that HTTP is served on; given by `mandate up`.", minimum=3
    )
    redis_url: Secret | None = setting("MANDATE_REDIS_URL", None, "Redis or Valkey; embedded when empty.")
    tls_dir: Path | None = setting(
        "MANDATE_TLS_DIR", None, "Folder of ca.pem, <service>.pem and <service>.key; $MANDATE_HOME/tls when empty."
    )
    drain_seconds: int = setting(
        "MANDATE_DRAIN_SECONDS", 20, "How long a stopping server waits for calls in flight.", minimum=0, maximum=600
    )
    log_level: str = setting(
        "MANDATE_LOG_LEVEL", "INFO", "Least severe level that is logged.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    log_config: Path | None = setting(
        "MANDATE_LOG_CONFIG", None, "YAML file laid over the shipped logging configuration."
    )
    failpoint_file: Path | None = setting(
        "MANDATE_FAILPOINT_FILE",
        None,
        "File in which tests of crashes name a place at which a process is to be killed; refused in production.",
    )
    otlp_endpoint: str = setting(
        "MANDATE_OTLP_ENDPOINT", "", "OpenTelemetry collector (OTLP over gRPC); no traces when empty."
    )
    identity_address: str = setting("MANDATE_IDENTITY_ADDRESS", "", "Replicas of identity as host:port,host:port.")
    vault_address: str = setting("MANDATE_VAULT_ADDRESS", "", "Replicas of the vault as host:port,host:port.")
    ledger_address: str = setting("MANDATE_LEDGER_ADDRESS", "", "Replicas of the ledger as host:port,host:port.")
    gateway_address: str = setting(
        "MANDATE_GATEWAY_ADDRESS", "", "gRPC replicas of the gateway as host:port,host:port."
    )
    allow_unknown: bool = setting(
        "MANDATE_ALLOW_UNKNOWN_SETTINGS", False, "Start although a MANDATE_ name is not known (for a rolling change)."
    )
    env_file: Path | None = setting("MANDATE_ENV_FILE", Path(ENV_FILE), "The one .env file; none when set to empty.")

    @property
    def tls(self) -> Path:
        """Folder that holds this mesh's certificates."""
        return self.tls_dir or self.home / "tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What `mandate up` and `mandate migrate` read and no service does."""

    database_url: Secret | None = setting(
        "MANDATE_DATABASE_URL", None, "PostgreSQL as the schemas' owner; embedded when empty. No service is given it."
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where values come from: the environment over one `.env`."""

    environ: dict[str, str]
    dotenv: dict[str, str]

    @classmethod
    def process(cls) -> Source:
        """Read this process's environment and the `.env` that it names."""
        environ = dict(os.environ)
        return cls(environ, _dotenv(environ.get("MANDATE_ENV_FILE")))

    def find(self, name: str) -> tuple[str, str] | None:
        """Return a value and the place that it came from."""
        if name in self.environ:
            return self.environ[name], "environment"
        if name in self.dotenv:
            return self.dotenv[name], ".env"
        return None

    def names(self) -> set[str]:
        """Return every name under our prefix that is set somewhere."""
        return {name for name in (*self.environ, *self.dotenv) if name.startswith(PREFIX)}


@dataclass(frozen=True, slots=True)
class Reading:
    """One setting as this process sees it, for `mandate settings`; a secret's text is hidden."""

    spec: Spec
    shown: str
    origin: str


def load(cls: type[T], source: Source | None = None) -> T:
    """Build `cls` from the environment; raise SettingsError naming the first setting that is wrong."""
    source = source or Source.process()
    _refuse_unknown(source)
    values = {field.name: _value(field, kind, source)[0] for field, kind in _fields(cls)}
    return cls(**values)


def readings(source: Source | None = None) -> list[Reading]:
    """List every setting of the mesh with its value and the place it came from."""
    source = source or Source.process()
    found: dict[str, Reading] = {}
    for cls in classes():
        for field, kind in _fields(cls):
            value, origin = _value(field, kind, source, required=False)
            shown = "(secret)" if isinstance(value, Secret) else "" if value is None else _shown(value)
            found[field.metadata["spec"].name] = Reading(field.metadata["spec"], shown, origin)
    return sorted(found.values(), key=lambda reading: reading.spec.name)


def classes() -> list[type]:
    """Return every settings dataclass of the mesh: ours and each service's, found by name, imported late."""
    found: list[type] = [Runtime, Deployment]
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:  # an image may carry one service alone
            continue
        module = importlib.import_module(f"{package}.settings")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
        ]
    return found


def names_of(cls: type) -> set[str]:
    """Return the names that `cls` reads, `NAME_FILE` of its secrets among them."""
    names: set[str] = set()
    for field, kind in _fields(cls):
        name = field.metadata["spec"].name
        names.add(name)
        if Secret in _kinds(kind):
            names.add(f"{name}_FILE")
    return names


def _dotenv(named: str | None) -> dict[str, str]:
    """Read the `.env` file; one that nobody named may be missing."""
    path = Path(ENV_FILE if named is None else named)
    if named == "" or (named is None and not path.is_file()):
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError("MANDATE_ENV_FILE", f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError("MANDATE_ENV_FILE", f"{path} does not hold text in UTF-8") from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise SettingsError("MANDATE_ENV_FILE", f"{path}: line {binding.original.line} is not NAME=value")
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def _refuse_unknown(source: Source) -> None:
    allowed = source.find("MANDATE_ALLOW_UNKNOWN_SETTINGS")
    if allowed is not None and allowed[0].lower() in TRUE:
        return
    known = set[str]().union(*(names_of(cls) for cls in classes()))
    for name in sorted(source.names() - known):
        raise SettingsError(name, "no such setting (see `mandate settings`)")


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _kinds(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _value(field: dataclasses.Field[Any], kind: Any, source: Source, *, required: bool = True) -> tuple[object, str]:
    spec: Spec = field.metadata["spec"]
    kinds = _kinds(kind)
    found = source.find(spec.name)
    if Secret in kinds and (found is None or found[0] == ""):  # compose passes on what is not set as empty
        found = _from_file(spec.name, source) or found
    if found is None or (found[0] == "" and type(None) in kinds):
        if field.default is dataclasses.MISSING:
            if required:
                raise SettingsError(spec.name, "must be set")
            return None, "missing"
        return (field.default if found is None else None), ("default" if found is None else found[1])
    text, origin = found
    return _parse(spec, next(k for k in kinds if k is not type(None)), text), origin


def _from_file(name: str, source: Source) -> tuple[str, str] | None:
    found = source.find(f"{name}_FILE")
    if found is None or not found[0]:
        return None
    try:
        return Path(found[0]).read_text().strip(), f"file of {name}_FILE"
    except OSError as error:
        raise SettingsError(f"{name}_FILE", f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}_FILE", "does not hold text in UTF-8") from None


def _parse(spec: Spec, kind: Any, text: str) -> object:
    if kind is bool:
        if text.lower() not in TRUE | FALSE:
            raise SettingsError(spec.name, f"must be true or false, not {text!r}")
        return text.lower() in TRUE
    if kind is int:
        return _parse_int(spec, text)
    if kind is Secret:
        return Secret(_checked(spec, text))
    if kind is Path:
        return Path(text)
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if spec.choices and text not in spec.choices:
        raise SettingsError(spec.name, f"must be one of {', '.join(spec.choices)}, not {text!r}")
    return text


def _checked(spec: Spec, text: str) -> str:
    """Return a secret, unless it is an address that no driver reads: its error would quote parts of the password."""
    if not spec.name.endswith("_URL"):
        return text
    try:
        hosts = urlsplit(text).netloc.rpartition("@")[2].split(",")  # PostgreSQL's may be several
        ports = [int(host.rpartition("]")[2].partition(":")[2] or 0) for host in hosts]
    except ValueError:
        ports = [-1]
    if "://" not in text or not all(0 <= port <= PORT_MAX for port in ports):
        raise SettingsError(spec.name, "is no URL; signs such as / # ? @ : in a password must be percent-encoded")
    return text


def _parse_int(spec: Spec, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(spec.name, f"must be a whole number, not {text!r}") from None
    low, high = spec.minimum, spec.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        raise SettingsError(spec.name, f"must be between {low} and {high}, not {number}")
    return number


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in typing.cast("tuple[object, ...]", value))
    return str(value)
