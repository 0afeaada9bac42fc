from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from mesh.secret import Secret
from mesh.settings import Runtime
from mesh.telemetry import logs

RUNTIME = Runtime(env_file=None)


def test_the_services_file_is_laid_over_the_base_and_the_operators_over_both(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("root: {handlers: [file]}\nhandlers: {file: {filename: elsewhere.log, maxBytes: 7}}\n")
    runtime = dataclasses.replace(RUNTIME, home=tmp_path, log_config=own, log_level="DEBUG")
    config = logs.configuration("ledger", runtime)
    assert config["handlers"]["file"]["filename"] == str(tmp_path / "logs" / "elsewhere.log")
    assert config["handlers"]["file"]["maxBytes"] == 7
    assert config["handlers"]["file"]["backupCount"] == 5
    assert config["root"] == {"level": "DEBUG", "handlers": ["file"]}


@pytest.mark.parametrize("service", ["identity", "vault", "ledger", "gateway", "edge"])
def test_each_service_has_a_rotating_file_of_its_own(service: str, tmp_path: Path) -> None:
    handler = logs.configuration(service, dataclasses.replace(RUNTIME, home=tmp_path))["handlers"]["file"]
    assert handler["class"] == "logging.handlers.RotatingFileHandler"
    assert (handler["maxBytes"], handler["backupCount"]) == (10 * 1024 * 1024, 5)
    assert handler["filename"] == str(tmp_path / "logs" / f"{service}.log")


def test_replicas_do_not_share_a_file(tmp_path: Path) -> None:
    runtime = dataclasses.replace(RUNTIME, home=tmp_path, replica=2)
    assert logs.configuration("gateway", runtime)["handlers"]["file"]["filename"].endswith("gateway-2.log")


def test_an_event_is_one_json_line_that_hides_secrets() -> None:
    record = logging.LogRecord("mesh.test", logging.INFO, "", 0, "hold.expired", None, None)
    record.fields = {"held_micros": 7, "key": Secret("canary"), "event": "not this one"}
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["event"], line["held_micros"], line["level"]) == ("hold.expired", 7, "INFO")
    assert "canary" not in str(line)
