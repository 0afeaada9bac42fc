"""Which organization an object belongs to, for the interceptor that guards the contracts."""

from __future__ import annotations

import grpc

from gateway_svc.store import policies, routes
from mandate.identity.v1 import directory_pb2, directory_pb2_grpc
from mesh import client, ids
from mesh.db import Database
from mesh.errors import NotFound

NODES = (ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT)


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
        if kind not in NODES:
            return None
        try:
            request = directory_pb2.ResolveNodeRequest(node_id=object_id)
            node = await client.call(self._identity.ResolveNode, request)
        except NotFound:
            return None
        return node.organization_id
