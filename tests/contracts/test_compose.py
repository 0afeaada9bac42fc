"""compose.yaml against what the code knows: services, settings, secrets and ports that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import certificates, services, settings
from mesh.ports import Layout

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {service.name for service in services.SERVICES}
LAYOUT = Layout.of(settings.Runtime())
CONDITIONS = {"service_healthy", "service_completed_successfully", "service_started"}


def _known_settings() -> set[str]:
    return set[str]().union(*(settings.names_of(cls) for cls in settings.classes()))


def test_every_service_of_the_mesh_runs() -> None:
    assert set(SERVICES) == OURS | {"postgres", "valkey", "init"}
    for service in services.SERVICES:
        assert SERVICES[service.name]["command"] == ["python", "-m", service.package]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_refers_to_exists(name: str) -> None:
    service = SERVICES[name]
    for other, terms in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert terms["condition"] in CONDITIONS
        assert terms["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
    assert volumes <= set(COMPOSE["volumes"])
    if "build" in service:
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", sorted(OURS | {"init"}))
def test_a_service_is_given_settings_that_are_known(name: str) -> None:
    assert set(SERVICES[name]["environment"]) <= _known_settings()


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_service_sees_its_own_secrets_alone(name: str) -> None:
    assert SERVICES[name]["volumes"] == [f"{name}:/run/mandate:ro"]
    assert "database_url" not in SERVICES[name].get("secrets", [])
    given = {key for key in SERVICES[name]["environment"] if key.endswith("_DATABASE_URL_FILE")}
    assert given == ({f"MANDATE_{name.upper()}_DATABASE_URL_FILE"} if services.named(name).database else set())


@pytest.mark.parametrize("name", sorted(OURS))
def test_addresses_are_the_ports_that_the_others_listen_on(name: str) -> None:
    for key, value in SERVICES[name]["environment"].items():
        if match := re.fullmatch(r"MANDATE_([A-Z]+)_ADDRESS", key):
            peer = match[1].lower()
            assert value == f"{peer}:{LAYOUT.grpc(services.named(peer), 0)}"


def test_no_secret_stands_in_the_file() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            secret = re.search(r"(KEY|PASSWORD|SECRET|_URL)$", key)
            assert secret is None or str(value).startswith("${"), key


def test_published_ports_are_quoted_and_on_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == [f"127.0.0.1:{port}:{port}" for port in (LAYOUT.gateway_port, LAYOUT.edge_port)]


def test_the_image_has_a_folder_for_each_service_that_init_fills() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    for name in OURS:
        assert f"/run/mandate/{name}" in text
        assert f"{name}:/run/mandate/{name}" in SERVICES["init"]["volumes"]
    assert set(certificates.NAMES) >= OURS
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
