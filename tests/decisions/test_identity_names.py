from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_svc import bearers, directory, passwords
from identity_svc.attempts import LocalCounters
from identity_svc.names import email_of, name_of
from mesh import ids
from mesh.errors import Exhausted, InvalidArgument
from mesh.secret import Secret

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [(" Ada@Example.COM\n", "ada@example.com"), ("a.b+c@x", "a.b+c@x"), ("é@exämple.org", "é@exämple.org")],
)
def test_an_email_has_one_form(given_: str, kept: str) -> None:
    assert email_of(given_) == kept


@pytest.mark.parametrize(
    "text", ["", "@", "a@", "@b", "a", "a@b@c", "a b@c", "a@b c", "a\x00@b", f"{'a' * 65}@b", f"a@{'b' * 253}"]
)
def test_what_cannot_be_an_email_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        email_of(text)
    assert refused.value.details["field"] == "email"


@given(st.text(max_size=300))
def test_a_name_that_is_taken_is_taken_again_as_it_is(text: str) -> None:
    try:
        name = name_of(text)
    except InvalidArgument:
        return
    assert 1 <= len(name) <= 200
    assert name_of(name) == name


@pytest.mark.parametrize("text", ["", " \t ", "x" * 201, "a\x00b", "a\nb", "a\u2028b", "a\x7fb"])
def test_what_cannot_be_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        name_of(text)


def test_a_password_is_the_same_from_every_keyboard() -> None:
    assert passwords.chosen("caf\u0065\u0301 au lait") == passwords.presented("caf\u00e9 au lait")


@pytest.mark.parametrize(("length", "good"), [(9, False), (10, True), (1_024, True), (1_025, False)])
def test_a_new_password_has_10_to_1024_characters(length: int, good: bool) -> None:  # noqa: FBT001
    if good:
        passwords.chosen("x" * length)
    else:
        with pytest.raises(InvalidArgument):
            passwords.chosen("x" * length)


def test_bearers_differ_and_say_what_they_are() -> None:
    keys = {bearers.mint(bearers.Prefix.API_KEY).reveal() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"cpk_[0-9A-Za-z]{43}", key) for key in keys)
    session = bearers.mint(bearers.Prefix.SESSION)
    assert re.fullmatch(r"mses_[0-9A-Za-z]{43}", session.reveal())


def test_a_bearer_is_kept_as_its_sha_256() -> None:
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert bearers.digest(Secret("abc")).hex() == abc


@pytest.mark.parametrize("paths", [(), ("id",), ("name", "create_time")])
def test_a_mask_may_name_nothing_but_the_name(paths: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        directory.renamed(paths, "New")
    assert refused.value.details["field"] == "update_mask"


def test_a_parent_is_of_a_kind_that_bears_children() -> None:
    allowed = (ids.Kind.ORGANIZATION, ids.Kind.WORKSPACE)
    assert directory.parent_kind(ids.new(ids.Kind.WORKSPACE), allowed) is ids.Kind.WORKSPACE
    for wrong in (ids.new(ids.Kind.AGENT), "", "org_"):
        with pytest.raises(InvalidArgument):
            directory.parent_kind(wrong, allowed)


def test_the_sixty_fifth_organization_is_refused() -> None:
    directory.check_room(63)
    with pytest.raises(Exhausted):
        directory.check_room(64)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_key_is_not_born_expired(seconds: int) -> None:
    directory.check_expiry(None, NOW)
    directory.check_expiry(NOW + timedelta(seconds=1), NOW)
    with pytest.raises(InvalidArgument):
        directory.check_expiry(NOW + timedelta(seconds=seconds), NOW)


def test_a_window_counts_until_it_ends() -> None:
    counters = LocalCounters()
    counted = [counters.count("a", 1_000, now_ms) for now_ms in (0.0, 999.0, 1_000.0)]
    assert [(each.attempts, each.left_ms) for each in counted] == [(1, 1_000), (2, 1), (1, 1_000)]


def test_windows_are_bounded_and_the_longest_unused_goes_first() -> None:
    counters = LocalCounters(counters_max=2)
    for key in ("a", "b", "a", "c"):
        counters.count(key, 1_000, 0.0)
    assert [counters.count(key, 1_000, 1.0).attempts for key in ("a", "b")] == [3, 1]
