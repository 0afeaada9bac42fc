from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh import settings
from mesh.secret import Secret
from mesh.settings import Runtime, SettingsError, Source, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    needed: str = setting("MANDATE_HOST", ..., "doc")
    count: int = setting("MANDATE_BASE_PORT", 7, "doc", minimum=1, maximum=9)
    secret: Secret | None = setting("MANDATE_REDIS_URL", None, "doc")
    flag: bool = setting("MANDATE_ALLOW_UNKNOWN_SETTINGS", False, "doc")
    choice: str = setting("MANDATE_LOG_LEVEL", "INFO", "doc", choices=("INFO", "DEBUG"))


def source(dotenv: dict[str, str] | None = None, **environ: str) -> Source:
    return Source(environ, dotenv or {})


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_default() -> None:
    found = settings.load(Sample, source({"MANDATE_HOST": "b", "MANDATE_BASE_PORT": "3"}, MANDATE_HOST="a"))
    assert (found.needed, found.count, found.choice) == ("a", 3, "INFO")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, "MANDATE_HOST"),
        ({"MANDATE_HOST": "a", "MANDATE_BASE_PORT": "ten"}, "MANDATE_BASE_PORT"),
        ({"MANDATE_HOST": "a", "MANDATE_BASE_PORT": "10"}, "MANDATE_BASE_PORT"),
        ({"MANDATE_HOST": "a", "MANDATE_LOG_LEVEL": "LOUD"}, "MANDATE_LOG_LEVEL"),
        ({"MANDATE_HOST": "a", "MANDATE_ALLOW_UNKNOWN_SETTINGS": "perhaps"}, "MANDATE_ALLOW_UNKNOWN_SETTINGS"),
        ({"MANDATE_HOST": "a", "MANDATE_REDIS_URL_FILE": "/no/such/file"}, "MANDATE_REDIS_URL_FILE"),
        ({"MANDATE_HOST": "a", "MANDATE_LEGDER_POOL_SIZE": "3"}, "MANDATE_LEGDER_POOL_SIZE"),
        ({"MANDATE_LEGDER_POOL_SIZE": "3", "MANDATE_ALLOW_UNKNOWN_SETTINGS": "no"}, "MANDATE_LEGDER_POOL_SIZE"),
        ({"MANDATE_HOST": "a", "MANDATE_REDIS_URL_FILE": sys.executable}, "MANDATE_REDIS_URL_FILE"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_setting(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings.load(Sample, Source(environ, {}))
    assert error.value.name == named
    assert str(error.value).startswith(f"{named}: ")
    assert "\n" not in str(error.value)


def test_a_secret_may_come_from_a_file_and_shows_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("redis://canary\n")
    found = settings.load(Sample, source(MANDATE_HOST="a", MANDATE_REDIS_URL_FILE=str(tmp_path / "secret")))
    assert found.secret is not None
    assert found.secret.reveal() == "redis://canary"
    assert "canary" not in repr(found)
    empty = source(MANDATE_HOST="a", MANDATE_REDIS_URL="", MANDATE_REDIS_URL_FILE=str(tmp_path / "secret"))
    assert settings.load(Sample, empty).secret == found.secret
    shown = settings.readings(source(MANDATE_REDIS_URL="redis://canary"))
    assert "canary" not in str(shown)
    assert {reading.spec.name: reading.origin for reading in shown}["MANDATE_REDIS_URL"] == "environment"


@pytest.mark.parametrize(
    "url",
    ["canary", "redis://:canary/1@h:1/0", "redis://:can#ary@h:1/0", "redis://:canary@h:70000/0", "redis://[canary"],
)
def test_an_address_that_no_driver_reads_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^MANDATE_REDIS_URL: is no URL") as error:
        settings.load(Sample, source(MANDATE_HOST="a", MANDATE_REDIS_URL=url))
    assert "can" not in str(error.value).replace("can be", "")


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@a:1,b:2/x?sslmode=require", "redis://:p%2F@[::1]:1/0", "unix:///run/redis.sock", "redis://h"],
)
def test_every_kind_of_address_that_drivers_read_is_taken(url: str) -> None:
    assert settings.load(Sample, source(MANDATE_HOST="a", MANDATE_REDIS_URL=url)).secret == Secret(url)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"MANDATE_HOST=a\nthis is = no setting\n", "line 2 is not NAME=value"),
        (b"MANDATE_HOST=\xff\n", "UTF-8"),
        (None, "No such"),
    ],
)
def test_a_broken_dotenv_is_one_line(
    content: bytes | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "env").write_bytes(content)
    monkeypatch.setenv("MANDATE_ENV_FILE", str(tmp_path / "env"))
    with pytest.raises(SettingsError, match="MANDATE_ENV_FILE") as error:
        Source.process()
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_may_be_allowed_for_a_rolling_change() -> None:
    allowed = source(MANDATE_HOST="a", MANDATE_OF_TOMORROW="1", MANDATE_ALLOW_UNKNOWN_SETTINGS="true")
    assert settings.load(Sample, allowed).flag


def test_every_setting_has_words_and_a_default_that_it_would_accept() -> None:
    for cls in settings.classes():
        for name in settings.names_of(cls):
            assert name == name.upper()
    loaded = settings.load(Runtime, source())
    assert loaded.base_port == 7100
    assert all(reading.spec.doc.endswith(".") for reading in settings.readings(source()))


@pytest.mark.parametrize(("text", "means"), [("1", True), ("YES", True), ("on", True), ("0", False), ("False", False)])
def test_every_switch_can_be_on_and_off(text: str, means: bool) -> None:  # noqa: FBT001  # a table's column
    assert settings.load(Sample, source(MANDATE_HOST="a", MANDATE_ALLOW_UNKNOWN_SETTINGS=text)).flag is means
