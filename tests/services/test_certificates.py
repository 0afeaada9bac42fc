from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]

from mesh import certificates, children, ports, probes, testing
from mesh.chain.access import organizations_only
from mesh.clock import SetClock, SystemClock
from mesh.home import Home
from mesh.server import Server
from mesh.settings import Runtime
from mesh.tls import Certificates

START = datetime(2030, 1, 1, tzinfo=UTC)


def read(home: Home, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((home.tls / f"{name}.pem").read_bytes())


@pytest.fixture
def home(tmp_path: Path) -> Generator[Home]:
    made = Home.open(tmp_path / "home")
    yield made
    made.wipe()


def test_every_service_gets_an_identity_of_this_home(home: Home) -> None:
    domain = certificates.ensure(home, SetClock(START))
    assert domain.name == f"mandate-{home.instance}"
    for name in certificates.NAMES:
        found = read(home, name)
        found.verify_directly_issued_by(read(home, "ca"))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{domain.name}/{name}"]
        assert names.get_values_for_type(x509.DNSName) == [f"{name}.mandate.internal", "localhost"]
        assert (home.tls / f"{name}.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (59, False), (61, True), (100, True)])
def test_a_certificate_is_renewed_in_its_last_30_days(home: Home, days: int, *, renewed: bool) -> None:
    clock = SetClock(START)
    certificates.ensure(home, clock)
    before = read(home, "vault").serial_number
    authority = read(home, "ca").serial_number
    clock.move(timedelta(days=days))
    certificates.ensure(home, clock)
    assert (read(home, "vault").serial_number != before) is renewed
    assert read(home, "ca").serial_number == authority


@pytest.mark.parametrize("content", [b"", b"not a key", None])
def test_a_torn_pair_is_made_anew(home: Home, content: bytes | None) -> None:
    certificates.ensure(home, SetClock(START))
    other = (home.tls / "ledger.key").read_bytes()
    (home.tls / "vault.key").write_bytes(other if content is None else content)
    certificates.ensure(home, SetClock(START))
    key = certificates.load_key(home.tls / "vault.key")
    assert key.public_key() == read(home, "vault").public_key()


async def test_the_probe_of_one_home_is_refused_by_a_service_of_another(home: Home, tmp_path: Path) -> None:
    other = Home.open(tmp_path / "other")
    for each in (home, other):
        certificates.ensure(each, SystemClock())
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_secure_port("127.0.0.1:0", Certificates(home.tls, "vault").server())
    await server.start()
    try:
        assert await probes.grpc_health(Certificates(home.tls, "operator"), "127.0.0.1", port)()
        assert not await probes.grpc_health(Certificates(other.tls, "operator"), "127.0.0.1", port)()
        await health.enter_graceful_shutdown()
        assert not await probes.grpc_health(Certificates(home.tls, "operator"), "127.0.0.1", port)()
    finally:
        await server.stop(0)
        other.wipe()


async def test_a_workload_of_another_domain_is_nobody_here_although_one_authority_certified_both(
    home: Home, tmp_path: Path
) -> None:
    other = Home.open(tmp_path / "other")
    certificates.ensure(home, SystemClock())
    for name in ("tls/ca.pem", "keys/ca.key"):
        (other.path / name).write_bytes((home.path / name).read_bytes())
    certificates.ensure(other, SystemClock())
    base_port = children.free_port() - ports.GRPC["vault"]
    runtime = Runtime(home=home.path, base_port=base_port, env_file=None)
    server = Server("vault", runtime, [], testing.TestIssuer(), organizations_only)
    await server.start()
    try:
        assert await probes.grpc_health(Certificates(home.tls, "operator"), "127.0.0.1", server.port)()
        assert not await probes.grpc_health(Certificates(other.tls, "operator"), "127.0.0.1", server.port)()
    finally:
        await server.stop()
        other.wipe()
