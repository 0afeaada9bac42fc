from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest

from mesh.tls import Certificates
from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]


def complete(mesh: Mesh, tenant: Tenant) -> httpx.Response:
    return httpx.post(
        f"{mesh.gateway_url}/v1/chat/completions",
        json={"model": "mock-model", "messages": [{"role": "user", "content": "hello"}]},
        headers={"authorization": f"Bearer {tenant.api_key}"},
    )


def me(mesh: Mesh, tenant: Tenant) -> httpx.Response:
    query = {"query": "{ me { id } }"}
    return httpx.post(mesh.graphql_url, json=query, headers={"authorization": f"Bearer {tenant.token}"})


async def test_two_meshes_run_side_by_side_and_trust_each_other_in_nothing(mesh: Mesh, tmp_path: Path) -> None:
    other = Mesh(tmp_path / "home")
    with other.up():
        here, there = mesh.tenant(5_000_000), other.tenant(5_000_000)
        assert [complete(mesh, here).status_code, complete(other, there).status_code] == [200, 200]
        assert [complete(mesh, there).status_code, complete(other, here).status_code] == [401, 401]
        assert me(mesh, there).status_code == 401
        foreign = Certificates(other.home / "tls", "edge").client()
        options = [("grpc.ssl_target_name_override", "identity.mandate.internal")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{mesh.base_port + 10}", foreign, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=3)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert complete(mesh, here).status_code == 200
