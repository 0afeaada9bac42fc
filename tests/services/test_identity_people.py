from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from identity_svc.hashing import hashing
from mandate.identity.v1 import people_pb2 as pb
from mesh import children
from mesh.caller import acting
from mesh.client import call
from mesh.clock import SetClock, SystemClock, monotonic_ms
from mesh.errors import AlreadyExists, Exhausted, InvalidArgument, Unauthenticated, Unavailable
from mesh.secret import Secret
from mesh.testing import House
from tests.services.identity_running import PASSWORD, Running, as_owner, fresh, identity_running


@pytest.fixture(scope="module")
async def identity(house: House) -> AsyncIterator[Running]:
    async with identity_running(house) as running:
        yield running


def log_in(session: pb.Session, password: str = PASSWORD) -> pb.LogInRequest:
    return pb.LogInRequest(email=session.person.email, password=password)


async def test_who_signs_up_is_logged_in(identity: Running) -> None:
    session = await identity.sign_up()
    with acting(await identity.caller_of(session)):
        me = await call(identity.people.GetMe, pb.GetMeRequest())
    assert (me.id, me.email, me.name, list(me.memberships)) == (session.person.id, session.person.email, "Ada", [])


async def test_a_login_names_the_memberships(identity: Running) -> None:
    session = await identity.sign_up()
    organization = await identity.organization(session)
    again = await call(identity.people.LogIn, log_in(session))
    assert [(each.organization_id, each.role) for each in again.person.memberships] == [(organization.id, "owner")]
    assert again.access_token != session.access_token


async def test_an_email_is_taken_however_it_is_spelt(identity: Running) -> None:
    session = await identity.sign_up()
    email = f"  {session.person.email.upper()} "
    with pytest.raises(AlreadyExists) as refused:
        await call(identity.people.SignUp, pb.SignUpRequest(email=email, password=PASSWORD, name="Eve"))
    assert refused.value.reason == "EMAIL_TAKEN"
    assert (await call(identity.people.LogIn, pb.LogInRequest(email=email, password=PASSWORD))).person.name == "Ada"


async def test_a_wrong_email_and_a_wrong_password_answer_alike(identity: Running) -> None:
    session = await identity.sign_up()
    answers: list[tuple[str, str, dict[str, str]]] = []
    for request in (
        log_in(session, "not the password"),
        pb.LogInRequest(email=f"{fresh()}@example.com", password=PASSWORD),
    ):
        with pytest.raises(Unauthenticated) as refused:
            await call(identity.people.LogIn, request)
        answers.append((refused.value.reason, refused.value.message, refused.value.details))
    assert answers[0] == answers[1]
    assert answers[0][0] == "LOG_IN_REFUSED"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("email", pb.SignUpRequest(email="nobody", password=PASSWORD, name="Ada")),
        ("email", pb.SignUpRequest(email="a@b@example.com", password=PASSWORD, name="Ada")),
        ("email", pb.SignUpRequest(email=f"a@{'x' * 254}", password=PASSWORD, name="Ada")),
        ("password", pb.SignUpRequest(email="a@example.com", password="short", name="Ada")),
        ("password", pb.SignUpRequest(email="a@example.com", password="x" * 1_025, name="Ada")),
        ("name", pb.SignUpRequest(email="a@example.com", password=PASSWORD, name="   ")),
        ("name", pb.SignUpRequest(email="a@example.com", password=PASSWORD, name="A\x07da")),
    ],
)
async def test_a_sign_up_names_its_bad_field(identity: Running, field: str, request_: pb.SignUpRequest) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await call(identity.people.SignUp, request_)
    assert refused.value.details["field"] == field


async def test_log_out_ends_the_session_and_no_other(identity: Running) -> None:
    session = await identity.sign_up()
    other = await call(identity.people.LogIn, log_in(session))
    for _ in range(2):
        await call(identity.people.LogOut, pb.LogOutRequest(access_token=session.access_token))
    with pytest.raises(Unauthenticated) as refused:
        await identity.caller_of(session)
    assert refused.value.reason == "SESSION_ENDED"
    await identity.caller_of(other)


async def test_a_session_ends_after_twelve_hours(house: House) -> None:
    clock = SetClock(SystemClock().now())
    async with identity_running(house, clock=clock) as identity:
        session = await identity.sign_up()
        clock.move(timedelta(hours=11, minutes=59))
        await identity.caller_of(session)
        clock.move(timedelta(minutes=1))
        with pytest.raises(Unauthenticated):
            await identity.caller_of(session)


async def test_the_mesh_token_dies_with_the_session(house: House) -> None:
    clock = SetClock(SystemClock().now())
    async with identity_running(house, clock=clock) as identity:
        session = await identity.sign_up()
        clock.move(timedelta(hours=11, minutes=59))
        request = pb.AuthenticateRequest(access_token=session.access_token)
        answer = await call(identity.people.Authenticate, request)
    assert answer.expire_time == session.expire_time


async def test_nothing_that_logs_in_is_kept(house: House, identity: Running) -> None:
    session = await identity.sign_up()
    async with as_owner(house) as owner:
        kept = await owner.fetchval("SELECT password_hash FROM people WHERE id = $1", session.person.id)
        tables = ["people", "sessions", "requests", "outbox", "changes"]
        rows = [row["text"] for table in tables for row in await owner.fetch(f"SELECT t::text AS text FROM {table} t")]  # noqa: S608
    assert str(kept).startswith("$argon2id$")
    assert not [row for row in rows if PASSWORD in row or session.access_token in row]


async def test_ten_failures_are_enough_for_five_minutes(identity: Running) -> None:
    session, bystander = await identity.sign_up(), await identity.sign_up()
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            await call(identity.people.LogIn, log_in(session, "a wrong password"))
    with pytest.raises(Exhausted) as refused:
        await call(identity.people.LogIn, log_in(session))
    assert refused.value.reason == "LOG_IN_RATE_LIMITED"
    assert 0 < (refused.value.retry_after_ms or 0) <= 300_000
    await call(identity.people.LogIn, log_in(bystander))


async def test_asking_for_a_taken_email_is_counted_too(identity: Running) -> None:
    session = await identity.sign_up()
    request = pb.SignUpRequest(email=session.person.email, password=PASSWORD, name="Eve")
    for _ in range(9):  # the first attempt made the person
        with pytest.raises(AlreadyExists):
            await call(identity.people.SignUp, request)
    with pytest.raises(Exhausted):
        await call(identity.people.SignUp, request)


async def test_many_guesses_at_once_find_no_gap(identity: Running) -> None:
    session = await identity.sign_up()
    guesses = [call(identity.people.LogIn, log_in(session, f"wrong guess {n}")) for n in range(25)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(answer, Unauthenticated) for answer in answers) == 10
    assert sum(isinstance(answer, Exhausted) for answer in answers) == 15


async def test_a_success_forgives_the_failures_before_it(identity: Running) -> None:
    session = await identity.sign_up()
    for _ in range(2):
        for _ in range(9):
            with pytest.raises(Unauthenticated):
                await call(identity.people.LogIn, log_in(session, "a wrong password"))
        await call(identity.people.LogIn, log_in(session))


async def test_without_valkey_people_log_in_and_guesses_are_still_counted(house: House) -> None:
    nowhere = Secret(f"redis://127.0.0.1:{children.free_port()}/0")
    async with identity_running(house, redis_url=nowhere) as identity:
        session = await identity.sign_up()
        await call(identity.people.LogIn, log_in(session))
        for _ in range(10):
            with pytest.raises(Unauthenticated):
                await call(identity.people.LogIn, log_in(session, "a wrong password"))
        with pytest.raises(Exhausted):
            await call(identity.people.LogIn, log_in(session))


async def test_a_login_renews_a_hash_of_other_strength(house: House, identity: Running) -> None:
    session = await identity.sign_up()
    async with hashing(128, 2, 1) as other, as_owner(house) as owner:
        old = await other.hash(Secret(PASSWORD))
        await owner.execute("UPDATE people SET password_hash = $2 WHERE id = $1", session.person.id, old)
        await call(identity.people.LogIn, log_in(session))
        renewed = await owner.fetchval("SELECT password_hash FROM people WHERE id = $1", session.person.id)
    assert "m=64,t=1" in str(renewed)
    await call(identity.people.LogIn, log_in(session))


async def test_past_a_bound_hashes_are_refused_not_queued() -> None:
    async with hashing(64, 1, 1) as hasher:
        kept = await hasher.hash(Secret(PASSWORD))
        work = [hasher.verify(kept, Secret(PASSWORD)) for _ in range(100)]
        answers = await asyncio.gather(*work, return_exceptions=True)
        assert sum(isinstance(answer, Unavailable) and answer.reason == "OVERLOADED" for answer in answers) == 58
        assert await hasher.verify(kept, Secret(PASSWORD))


async def test_an_unknown_email_costs_the_work_of_a_known_one() -> None:
    async with hashing(19_456, 2, 1) as hasher:
        kept = await hasher.hash(Secret(PASSWORD))
        took_ms: dict[str | None, float] = {}
        for found in (kept, None):
            began_ms = monotonic_ms()
            assert await hasher.verify(found, Secret(PASSWORD)) is (found is not None)
            took_ms[found] = monotonic_ms() - began_ms
    assert took_ms[None] > took_ms[kept] / 5
