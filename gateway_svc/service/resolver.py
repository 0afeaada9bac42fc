"""Which organization an object belongs to, for the interceptor that guards the contracts."""

from __future__ import annotations

import grpc

from gateway_svc.store import policies, routes
from mandate.identity.v1 import directory_pb2, directory_pb2_grpc
from mesh import client, ids
from mesh.db import Database
from mesh.errors import NotFound

TARGETS = (ids.Kind.ORGANIZATION, ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT)


class Resolver:
    """Says which organization an object belongs to: ours from the table, the hierarchy's by asking identity."""

    def __init__(self, db: Database, identity: grpc.aio.Channel) -> None:
        self._db = db
        self._identity = directory_pb2_grpc.DirectoryServiceStub(identity)

    async def __call__(self, object_id: str) -> str | None:
        kind = ids.kind_of(object_id)
        if kind is ids.Kind.ORGANIZATION:
            return object_id
        if kind is ids.Kind.POLICY:
            return await policies.organization_of(self._db, object_id)
        if kind is ids.Kind.ROUTE:
            return await routes.organization_of(self._db, object_id)
        node = await self._node(object_id)
        return None if node is None else node.organization_id

    async def path(self, node_id: str) -> tuple[str, ...] | None:
        """Return the levels above a node, from the organization down to itself."""
        node = await self._node(node_id)
        return None if node is None else tuple(node.path)

    async def _node(self, node_id: str) -> directory_pb2.Node | None:
        if ids.kind_of(node_id) not in TARGETS:
            return None
        try:
            return await client.call(self._identity.ResolveNode, directory_pb2.ResolveNodeRequest(node_id=node_id))
        except NotFound:
            return None
