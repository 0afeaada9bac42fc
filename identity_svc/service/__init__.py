"""Identity's RPCs: unpack, decide, write, pack. What they are made of is in `parts.py`."""

from __future__ import annotations

from functools import partial

from identity_svc.parts import Parts
from identity_svc.service.directory import DirectoryServicer
from identity_svc.service.keys import KeyServicer
from identity_svc.service.people import PeopleServicer
from identity_svc.store.hierarchy import organization_of
from mandate.identity.v1 import (
    directory_pb2,
    directory_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    people_pb2,
    people_pb2_grpc,
)
from mesh.chain.access import ScopeResolver
from mesh.server import Registration


def registrations(parts: Parts) -> list[Registration]:
    """Return identity's contracts with what implements them."""
    people = PeopleServicer(
        parts.db, parts.clock, parts.hasher, parts.attempts, parts.keys, session_life=parts.session_life
    )
    directory = DirectoryServicer(parts.db, parts.clock, parts.delivery, parts.pepper)
    keys = KeyServicer(parts.db, parts.clock, parts.keys, parts.hub, parts.pepper)
    return [
        Registration.of(people_pb2, people_pb2_grpc, people),
        Registration.of(directory_pb2, directory_pb2_grpc, directory),
        Registration.of(keys_pb2, keys_pb2_grpc, keys),
    ]


def resolver(parts: Parts) -> ScopeResolver:
    """Return what says which organization an object of identity belongs to."""
    return partial(organization_of, parts.db)
