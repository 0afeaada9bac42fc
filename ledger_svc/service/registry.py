"""What identity tells the ledger: the hierarchy and the keys that verify mesh tokens."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from ledger_svc.store import registry
from mandate.ledger.v1 import registry_pb2 as pb
from mandate.ledger.v1 import registry_pb2_grpc as rpc
from mesh import ids, tokens
from mesh.db import Database
from mesh.errors import invalid

KEY_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
NODES_MAX, KEYS_MAX, DEPTH_MAX = 500, 20, 4
Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(rpc.RegistryServiceServicer):
    """Implements mandate.ledger.v1.RegistryService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def PutNodes(self, request: pb.PutNodesRequest, context: Context) -> Empty:
        if len(request.nodes) > NODES_MAX:
            raise invalid("nodes", f"at most {NODES_MAX}")
        await registry.put_nodes(self._db, [_fact(node) for node in request.nodes])
        return Empty()

    async def PutVerificationKeys(self, request: pb.PutVerificationKeysRequest, context: Context) -> Empty:
        if len(request.keys) > KEYS_MAX:
            raise invalid("keys", f"at most {KEYS_MAX}")
        for key in request.keys:
            _check_key(key)
        await registry.put_keys(self._db, [(key.key_id, key.jwk) for key in request.keys])
        return Empty()


def _fact(node: pb.NodeFact) -> registry.NodeFact:
    path = tuple(node.path)
    if any(ids.kind_of(part) is None for part in path):
        raise invalid("nodes.path", "must hold ids")
    if not 1 <= len(path) <= DEPTH_MAX or path[0] != node.organization_id or path[-1] != node.id:
        raise invalid("nodes.path", "must lead from the organization to the node")
    return registry.NodeFact(node.id, node.organization_id, path, node.path_version)


def _check_key(key: pb.PublicKey) -> None:
    if not KEY_ID.fullmatch(key.key_id):
        raise invalid("keys.key_id", "must be 1 to 64 letters, digits or _.:-")
    try:
        tokens.key_of_jwk(key.jwk)
    except (ValueError, TypeError):
        raise invalid("keys.jwk", "is no public elliptic-curve JSON Web Key") from None
