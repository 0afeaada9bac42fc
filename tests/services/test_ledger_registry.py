from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mandate.ledger.v1 import prices_pb2, prices_pb2_grpc, wallets_pb2, wallets_pb2_grpc
from mandate.ledger.v1 import registry_pb2 as pb
from mandate.ledger.v1 import registry_pb2_grpc as rpc
from mesh import caller, ids, tokens
from mesh.client import call
from mesh.clock import SystemClock
from mesh.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger

ORGANIZATION, AGENT = ids.new(ids.Kind.ORGANIZATION), ids.new(ids.Kind.AGENT)


async def test_a_node_is_known_from_the_call_that_tells_of_it(ledger: RunningLedger, issuer: TestIssuer) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    fact = pb.NodeFact(id=organization, organization_id=organization, path=[organization], path_version=1)
    async with (
        ledger.house.channel("ledger", ledger.address, as_service="identity") as channel,
        ledger.house.channel("ledger", ledger.address, as_service="edge") as edge,
    ):
        wallets = wallets_pb2_grpc.WalletServiceStub(edge)
        request = wallets_pb2.GetWalletRequest(organization_id=organization)
        with caller.acting(issuer.person(**{organization: "owner"})):
            with pytest.raises(NotFound):
                await call(wallets.GetWallet, request)
            for _ in range(2):
                await call(rpc.RegistryServiceStub(channel).PutNodes, pb.PutNodesRequest(nodes=[fact]))
            assert await call(wallets.GetWallet, request) == wallets_pb2.Wallet(organization_id=organization)


@pytest.mark.parametrize(
    "fact",
    [
        pb.NodeFact(id=AGENT, organization_id=ORGANIZATION, path=[], path_version=1),
        pb.NodeFact(id=AGENT, organization_id=ORGANIZATION, path=[AGENT], path_version=1),
        pb.NodeFact(id=AGENT, organization_id=ORGANIZATION, path=[ORGANIZATION], path_version=1),
        pb.NodeFact(id=AGENT, organization_id=ORGANIZATION, path=[ORGANIZATION, "a,b", AGENT], path_version=1),
        pb.NodeFact(id=AGENT, organization_id=ORGANIZATION, path=[ORGANIZATION] * 4 + [AGENT], path_version=1),
    ],
)
async def test_a_path_leads_from_the_organization_to_the_node(ledger: RunningLedger, fact: pb.NodeFact) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="identity") as channel:
        with pytest.raises(InvalidArgument):
            await call(rpc.RegistryServiceStub(channel).PutNodes, pb.PutNodesRequest(nodes=[fact]))


async def test_tokens_of_a_key_hold_once_the_key_was_told(ledger: RunningLedger) -> None:
    organization = (await ledger.tenant(7))[0]
    private_key = ec.generate_private_key(ec.SECP256R1())
    person, session = ids.new(ids.Kind.PERSON), ids.new(ids.Kind.SESSION)
    token = tokens.Signer("later", private_key).sign(person, session, {organization: "owner"}, SystemClock().now())
    request = wallets_pb2.GetWalletRequest(organization_id=organization)
    keys = pb.PutVerificationKeysRequest(
        keys=[pb.PublicKey(key_id="later", jwk=tokens.public_jwk(private_key.public_key()))]
    )
    async with (
        ledger.house.channel("ledger", ledger.address, as_service="identity") as channel,
        ledger.house.channel("ledger", ledger.address, as_service="edge") as edge,
    ):
        wallets, registry = wallets_pb2_grpc.WalletServiceStub(edge), rpc.RegistryServiceStub(channel)
        with caller.acting(caller.Caller("edge", caller.Person(person, session, {}, token))):
            with pytest.raises(Unauthenticated):
                await call(wallets.GetWallet, request)
            for _ in range(2):
                await call(registry.PutVerificationKeys, keys)
            assert (await call(wallets.GetWallet, request)).settled_micros == 7


@pytest.mark.parametrize("key", [pb.PublicKey(key_id="k", jwk="{}"), pb.PublicKey(key_id="\x00", jwk=TestIssuer().jwk)])
async def test_what_is_no_public_key_is_refused(ledger: RunningLedger, key: pb.PublicKey) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="identity") as channel:
        request = pb.PutVerificationKeysRequest(keys=[key])
        with pytest.raises(InvalidArgument):
            await call(rpc.RegistryServiceStub(channel).PutVerificationKeys, request)


async def test_only_identity_tells_of_nodes_and_keys(ledger: RunningLedger) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="gateway") as channel:
        stub = rpc.RegistryServiceStub(channel)
        with pytest.raises(PermissionDenied):
            await call(stub.PutNodes, pb.PutNodesRequest())
        with pytest.raises(PermissionDenied):
            await call(stub.PutVerificationKeys, pb.PutVerificationKeysRequest())


@pytest.mark.parametrize("service", ["gateway", "edge"])
async def test_the_prices_in_force_are_listed_with_their_source(ledger: RunningLedger, service: str) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service=service) as channel:
        listed = await call(prices_pb2_grpc.PriceServiceStub(channel).ListPrices, prices_pb2.ListPricesRequest())
    prices = {(price.provider, price.model): price for price in listed.prices}
    assert prices["mock", "mock-flat"].request_micros == 1_000_000
    assert all(price.source and price.source_date for price in listed.prices)
