"""A remote ledger as identity sees it: takes nodes and keys, remembers them, and can be away."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from google.protobuf.empty_pb2 import Empty

from mandate.ledger.v1 import registry_pb2 as pb
from mandate.ledger.v1 import registry_pb2_grpc as rpc
from mesh import children
from mesh.chain import Context
from mesh.chain.access import organizations_only
from mesh.server import Registration, Server
from mesh.services import named
from mesh.testing import House, TestIssuer


class FakeLedger(rpc.RegistryServiceServicer):
    """Implements mandate.ledger.v1.RegistryService in memory, on a port of its own that stays when it is away."""

    def __init__(self) -> None:
        self.nodes: list[pb.NodeFact] = []
        self.keys: dict[str, str] = {}
        self.port = children.free_port()
        self.awake = asyncio.Event()  # cleared: calls arrive and are not answered
        self.awake.set()
        self._news = asyncio.Condition()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def paths(self) -> dict[str, tuple[str, ...]]:
        return {node.id: tuple(node.path) for node in self.nodes}

    async def PutNodes(self, request: pb.PutNodesRequest, context: Context) -> Empty:  # noqa: ARG002, N802
        await self.awake.wait()
        async with self._news:
            self.nodes.extend(request.nodes)
            self._news.notify_all()
        return Empty()

    async def PutVerificationKeys(  # noqa: N802
        self,
        request: pb.PutVerificationKeysRequest,
        context: Context,  # noqa: ARG002
    ) -> Empty:
        await self.awake.wait()
        async with self._news:
            self.keys = {key.key_id: key.jwk for key in request.keys}
            self._news.notify_all()
        return Empty()

    async def told(self, *ids: str) -> None:
        """Wait until these nodes or keys are known here."""
        async with asyncio.timeout(15), self._news:
            await self._news.wait_for(lambda: set(ids) <= self.keys.keys() | self.paths().keys())

    @asynccontextmanager
    async def serving(self, house: House) -> AsyncGenerator[None]:
        """Be there during the block."""
        offset = named("ledger").grpc or 0
        runtime = dataclasses.replace(house.runtime, base_port=self.port - offset, drain_seconds=0)
        registration = Registration.of(pb, rpc, self)
        server = Server("ledger", runtime, [registration], TestIssuer(), organizations_only)
        await server.start()
        try:
            yield
        finally:
            await server.stop()
