from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway_svc.providers import NotSent
from gateway_svc.providers.http1 import addresses as names
from gateway_svc.providers.http1.addresses import Address, Addresses
from gateway_svc.providers.upstream import Upstream

Found = list[tuple[int, int, int, str, tuple[str, int]]]


def found(*hosts: str) -> Found:
    return [(socket.AF_INET6 if ":" in host else socket.AF_INET, 1, 6, "", (host, 0)) for host in hosts]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Found]]:
    """Stand in for the DNS: what each name is found to be, asked one after the other."""
    answers: dict[str, Callable[[], Found]] = {}

    def getaddrinfo(host: str, *_: Any, **__: Any) -> Found:
        time.sleep(0.01)
        return answers[host]()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


@pytest.mark.parametrize("hosts", [("127.0.0.1",), ("93.184.215.14", "10.0.0.1"), ("93.184.215.14", "::1"), ()])
async def test_a_tenants_name_with_any_private_address_is_never_asked(
    lookups: dict[str, Callable[[], Found]], hosts: tuple[str, ...]
) -> None:
    lookups["rebound.example"] = lambda: found(*hosts)
    with pytest.raises(OSError, match="no public address"):
        await Addresses(public_only=True).of("rebound.example")
    upstream = Upstream(silence_seconds_max=1, public_only=True)
    with pytest.raises(NotSent, match="OSError"):
        async with upstream.post("https://rebound.example/v1", {}, b"{}"):
            pytest.fail("it was asked")
    await upstream.close()


async def test_the_address_that_was_checked_is_the_one_that_is_asked(
    lookups: dict[str, Callable[[], Found]], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([found("93.184.215.14"), found("127.0.0.1")])
    lookups["rebound.example"] = lambda: next(turns)
    asked_for: list[str] = []

    async def create_connection(_loop: Any, _factory: Any, host: str, *_: Any, **__: Any) -> None:
        asked_for.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", create_connection)
    upstream = Upstream(silence_seconds_max=1, public_only=True)
    with pytest.raises(NotSent):
        async with upstream.post("https://rebound.example/v1", {}, b"{}"):
            pytest.fail("it was asked")
    await upstream.close()
    assert asked_for == ["93.184.215.14"]


async def test_a_name_is_looked_up_once_for_all_who_ask_at_the_same_time(
    lookups: dict[str, Callable[[], Found]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def answer() -> Found:
        nonlocal count
        count += 1
        return found("93.184.215.14", "93.184.215.14", "2606:2800::1")

    lookups["a.example"] = answer
    known = Addresses(public_only=True)
    asking = [asyncio.create_task(known.of("a.example")) for _ in range(10)]
    await asyncio.sleep(0)
    asking[0].cancel()
    answers = await asyncio.gather(*asking[1:])
    assert {tuple(address.host for address in one) for one in answers} == {("93.184.215.14", "2606:2800::1")}
    await known.of("a.example")
    assert count == 1
    monkeypatch.setattr(names, "KNOWN_SECONDS", -1.0)
    known = Addresses(public_only=True)
    await known.of("a.example")
    await known.of("a.example")
    assert count == 3


async def test_a_name_that_is_not_found_is_looked_up_again(lookups: dict[str, Callable[[], Found]]) -> None:
    lookups["a.example"] = found
    known = Addresses(public_only=False)
    with pytest.raises(OSError, match="no public address"):
        await known.of("a.example")
    lookups["a.example"] = lambda: found("10.0.0.1")
    assert [address.host for address in await known.of("a.example")] == ["10.0.0.1"]


async def test_what_is_known_of_names_and_what_is_being_looked_up_stay_bounded(
    lookups: dict[str, Callable[[], Found]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "KNOWN_MAX", 3)
    monkeypatch.setattr(names, "LOOKUPS_MAX", 4)
    for number in range(5):
        lookups[f"{number}.test"] = lambda: found("10.0.0.1")
    known = Addresses(public_only=False)
    asking = [asyncio.create_task(known.of(f"{number}.test")) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="too many"):
        await known.of("4.test")
    await asyncio.gather(*asking)
    assert known.count == 3
    await known.close()


async def test_names_that_never_answer_stop_no_others(lookups: dict[str, Callable[[], Found]]) -> None:
    hurry = threading.Event()
    stuck = [f"{number}.stuck.example" for number in range(names.LOOKUPS_AT_ONCE * 2)]
    for name in stuck:
        lookups[name] = lambda: found("93.184.215.14") if hurry.wait(20) else found()
    lookups["a.quick.test"] = lambda: found("93.184.215.15")
    known = Addresses(public_only=True)
    asking = [asyncio.create_task(known.of(name)) for name in stuck]
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            assert [address.host for address in await known.of("a.quick.test")] == ["93.184.215.15"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await known.of(stuck[0])
    finally:
        hurry.set()
    await asyncio.gather(*asking)
    await known.close()


async def test_one_domains_names_leave_room_for_others_to_be_looked_up(lookups: dict[str, Callable[[], Found]]) -> None:
    hurry = threading.Event()
    known = Addresses(public_only=True)
    asking: list[asyncio.Task[tuple[Address, ...]]] = []
    for number in range(names.LOOKUPS_MAX):
        lookups[f"{number}.stuck.example"] = lambda: found("93.184.215.14") if hurry.wait(20) else found()
        asking.append(asyncio.create_task(known.of(f"{number}.stuck.example")))
    lookups["a.quick.test"] = lambda: found("93.184.215.15")
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            assert await known.of("a.quick.test")
    finally:
        hurry.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(outcome, OSError) for outcome in outcomes) == names.LOOKUPS_MAX * 3 // 4
    await known.close()
