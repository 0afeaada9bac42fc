"""The contracts that the gateway serves over gRPC."""

from __future__ import annotations

import grpc

from gateway_svc.service.policies import Policies
from gateway_svc.service.resolver import Resolver
from gateway_svc.service.routes import Routes
from mandate.gateway.v1 import policies_pb2, policies_pb2_grpc, routes_pb2, routes_pb2_grpc
from mesh.db import Database
from mesh.server import Registration

__all__ = ["Resolver", "registrations"]


def registrations(db: Database, resolve: Resolver, ledger: grpc.aio.Channel) -> list[Registration]:
    """Return the contracts that the gateway serves over gRPC."""
    return [
        Registration.of(policies_pb2, policies_pb2_grpc, Policies(db, resolve)),
        Registration.of(routes_pb2, routes_pb2_grpc, Routes(db, ledger)),
    ]
