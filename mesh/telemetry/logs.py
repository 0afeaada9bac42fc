"""Structured logs: an event's name and its fields, as one JSON line. Configured by YAML: base, service, environment."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from mesh.secret import Secret
from mesh.settings import Runtime

CONFIG = Path(__file__).parent / "config"
FIELD_MAX = 2_000

_service = "mandate"


class Log:
    """Write events under one module's name."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def event(self, event: str, **fields: object) -> None:
        """Record something that happened as it should."""
        self._logger.info(event, extra={"fields": fields})

    def warn(self, event: str, **fields: object) -> None:
        """Record something that needs a look."""
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, error: BaseException, **fields: object) -> None:
        """Record a failure with its traceback."""
        self._logger.error(event, exc_info=error, extra={"fields": fields})


class HttpLog(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp says of requests, without its errors' texts: they quote bad headers, which may hold a key."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Tell the kind of a failure alone."""
        failure = kwargs.pop("exc_info", None)
        kwargs["extra"] = {"fields": {"error": type(failure).__name__}} if isinstance(failure, BaseException) else {}
        return msg, kwargs


def http() -> HttpLog:
    """Return the log for aiohttp's servers."""
    return HttpLog(logging.getLogger("aiohttp.server"))


def get(name: str) -> Log:
    """Return the log of a module."""
    return Log(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": _service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        for key, value in cast("Mapping[str, object]", getattr(record, "fields", {})).items():
            line.setdefault(key, value)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_shown, ensure_ascii=False)


def configuration(service: str, runtime: Runtime) -> dict[str, Any]:
    """Return what logging is configured with: base, then the service's file, then the operator's, then the level."""
    config = _read(CONFIG / "base.yaml")
    config["handlers"]["file"]["filename"] = f"{service}.log"
    for path in (CONFIG / f"{service}.yaml", runtime.log_config):
        if path is not None and path.exists():
            config = _laid_over(config, _read(path))
    config["root"]["level"] = runtime.log_level
    filename = config["handlers"].get("file", {}).get("filename")
    if filename is None:
        config["handlers"].pop("file", None)
        config["root"]["handlers"] = [name for name in config["root"]["handlers"] if name != "file"]
    else:
        config["handlers"]["file"]["filename"] = str(_log_path(filename, runtime))
    return config


def configure(service: str, runtime: Runtime) -> None:
    """Set logging up for this process."""
    global _service  # noqa: PLW0603  # a process is one service
    _service = service
    logging.config.dictConfig(configuration(service, runtime))


def _log_path(filename: str, runtime: Runtime) -> Path:
    folder = runtime.home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    stem, dot, ending = filename.rpartition(".")
    return folder / (f"{stem}-{runtime.replica}{dot}{ending}" if runtime.replica else filename)


def _read(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(path.read_text()) or {})


def _laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, Secret) else str(value)[:FIELD_MAX]
