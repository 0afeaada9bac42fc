"""What identity tells the ledger: who is under whom, and the public keys of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc

from mandate.ledger.v1 import registry_pb2 as pb
from mandate.ledger.v1 import registry_pb2_grpc as rpc
from mesh import client


class Registry:
    """The ledger's RegistryService as identity uses it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = rpc.RegistryServiceStub(channel)

    async def put_nodes(self, facts: Sequence[bytes]) -> None:
        """Deliver serialized NodeFacts, at most 500; MeshError when the ledger did not take them."""
        nodes = [pb.NodeFact.FromString(fact) for fact in facts]
        await client.call(self._ledger.PutNodes, pb.PutNodesRequest(nodes=nodes))

    async def put_keys(self, jwks: Mapping[str, str]) -> None:
        """Deliver the public keys in use by key id; once this returns, the ledger verifies what they sign."""
        keys = [pb.PublicKey(key_id=key_id, jwk=jwk) for key_id, jwk in jwks.items()]
        await client.call(self._ledger.PutVerificationKeys, pb.PutVerificationKeysRequest(keys=keys))
