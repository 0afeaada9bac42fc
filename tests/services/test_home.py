from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.home import FORMAT, Home, HomeError
from mesh.up import ensure_keys


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def home(tmp_path: Path) -> Generator[Home]:
    made = Home.open(tmp_path / "home")
    yield made
    made.wipe()


def test_a_new_home_can_be_entered_by_its_owner_alone(home: Home) -> None:
    assert {mode(path) for path in (home.path, home.keys, home.tls, home.logs, home.run, home.sockets)} == {0o700}


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(home: Home) -> None:
    first = home.secret("postgres")
    assert Home.open(home.path).secret("postgres") == first != home.secret("valkey")
    assert mode(home.path / "secrets" / "postgres") == 0o600


def test_a_key_file_holds_32_bytes_and_stays(home: Home) -> None:
    before = home.ensure_key("vault").read_text()
    assert home.ensure_key("vault").read_text() == before
    assert len(before.strip()) == 44
    assert mode(home.keys / "vault.key") == 0o600


@pytest.mark.parametrize("lost", ["gateway.key", "identity.key", "vault.json", "audit.json"])
def test_a_home_that_lacks_one_key_gets_that_one_alone(home: Home, lost: str) -> None:
    ensure_keys(home)
    before = {path.name: path.read_bytes() for path in home.keys.iterdir()}
    (home.keys / lost).unlink()
    ensure_keys(home)
    after = {path.name: path.read_bytes() for path in home.keys.iterdir()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == {lost}


def test_a_second_lock_says_which_process_has_the_first(home: Home) -> None:
    script = (
        f"from mesh.home import Home; from pathlib import Path\nwith Home.open(Path({str(home.path)!r})).lock(): pass"
    )
    with home.lock():
        assert home.holder() == os.getpid()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()}" in done.stderr
    assert home.holder() is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format": 0}', "an unknown format"),
        (json.dumps({"format": FORMAT + 1}), "a newer format"),
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"format": FORMAT, "instance": "aaaabbbb", "data": "/etc", "sockets": "run"}), "damaged"),
    ],
)
def test_a_home_that_this_version_cannot_read_is_left_alone(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "home.json").write_text(content)
    with pytest.raises(HomeError, match=problem):
        Home.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["home.json"]


def test_a_folder_with_other_things_in_it_is_not_taken_for_a_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(HomeError, match="not a mandate home"):
        Home.open(tmp_path)
    with pytest.raises(HomeError, match="not a mandate home"):
        Home.existing(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_in_one_line() -> None:
    with pytest.raises(HomeError, match="cannot be used as a state folder") as caught:
        Home.open(Path("/proc/sys/mandate"))
    assert "\n" not in str(caught.value)


def test_looking_for_a_home_makes_none(tmp_path: Path) -> None:
    assert Home.existing(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []


def test_a_lost_socket_folder_is_made_again(home: Home) -> None:
    if home.sockets == home.run:
        pytest.skip("this home is short enough to keep its sockets")
    home.sockets.rmdir()
    again = Home.open(home.path)
    assert again.sockets.is_dir()
    again.wipe()


def test_wiping_removes_what_lies_outside_too(home: Home) -> None:
    home.data.mkdir(parents=True, exist_ok=True)
    home.wipe()
    assert not any(path.exists() for path in (home.path, home.data, home.sockets))


def test_sockets_have_a_short_path_where_tmpdir_has_a_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = Home.open(long / "home")
    try:
        assert len(os.fsencode(made.sockets)) < 80
    finally:
        made.wipe()


def test_a_home_that_was_removed_while_its_lock_was_waited_for_is_not_used(home: Home) -> None:
    def wiped() -> None:
        with home.lock():
            time.sleep(0.3)
            home.wipe()

    with ThreadPoolExecutor(1) as pool:
        wiping = pool.submit(wiped)
        time.sleep(0.1)
        with pytest.raises(HomeError, match="removed meanwhile"), home.lock():
            pass
        wiping.result()
