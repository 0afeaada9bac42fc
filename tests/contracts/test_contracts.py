"""What every contract keeps to, read from the compiled descriptors."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

import mandate
from mesh import access, settings

TESTS = Path(__file__).resolve().parent.parent
NOT_REPEATABLE = {"LogIn", "SignUp"}  # each login is a new session: no level of protobuf's fits
SECRET_NAMES = re.compile(r"(?:^|_)(?:secret|password|plaintext|token)$")
NOT_SECRET = {"page_token", "next_page_token"}  # a place in a list
MONEY_NAMES = re.compile(r"(?:^|_)(?:amount|balance|cost|credits|price|charge|ceiling|limit)$")
SERVICE_TESTS = "\n".join(path.read_text() for path in sorted((TESTS / "services").glob("*.py")))
FLOATS = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}


def _files() -> list[FileDescriptor]:
    found: list[FileDescriptor] = []
    for folder in map(Path, mandate.__path__):
        for path in sorted(folder.rglob("*_pb2.py")):
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            found.append(importlib.import_module(name).DESCRIPTOR)
    return found


def _messages(owner: FileDescriptor | Descriptor) -> Iterator[Descriptor]:
    inner = owner.message_types_by_name if isinstance(owner, FileDescriptor) else owner.nested_types_by_name
    for message in inner.values():
        yield message
        yield from _messages(message)


FILES = _files()
SERVICES: list[ServiceDescriptor] = [service for file in FILES for service in file.services_by_name.values()]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
FIELDS: list[FieldDescriptor] = [field for file in FILES for message in _messages(file) for field in message.fields]


def _by_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def _level(method: MethodDescriptor) -> int:
    return method.GetOptions().idempotency_level


def _is_mutation(method: MethodDescriptor) -> bool:
    streams = method.client_streaming or method.server_streaming
    return not streams and _level(method) != MethodOptions.NO_SIDE_EFFECTS


def test_the_contracts_are_found() -> None:
    assert {service.full_name.split(".")[1] for service in SERVICES} >= {"identity", "vault", "ledger", "gateway"}


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_every_method_declares_who_may_call_it(service: ServiceDescriptor) -> None:
    assert len(access.rules_of([service])) == len(service.methods)


@pytest.mark.parametrize("method", METHODS, ids=_by_name)
def test_every_method_names_callers_that_exist(method: MethodDescriptor) -> None:
    known = {name.removesuffix("_svc").removeprefix("graphql_") for name in settings.PACKAGES} | {"operator"}
    assert access.rule_of(method).callers <= known


@pytest.mark.parametrize("method", METHODS, ids=_by_name)
def test_every_method_says_whether_it_may_be_repeated(method: MethodDescriptor) -> None:
    if method.name not in NOT_REPEATABLE:
        assert _level(method) != MethodOptions.IDEMPOTENCY_UNKNOWN


@pytest.mark.parametrize("method", [m for m in METHODS if _is_mutation(m)], ids=_by_name)
def test_every_mutation_of_a_person_has_an_idempotency_key(method: MethodDescriptor) -> None:
    if access.rule_of(method).needs_person:
        assert "request_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("List")], ids=_by_name)
def test_every_list_for_people_is_paged(method: MethodDescriptor) -> None:
    if access.rule_of(method).needs_person:
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
        assert "next_page_token" in method.output_type.fields_by_name


def test_every_secret_field_is_marked() -> None:
    bare = [
        field.full_name
        for field in FIELDS
        if SECRET_NAMES.search(field.name) and field.name not in NOT_SECRET and not field.GetOptions().debug_redact
    ]
    assert not bare


def test_no_field_is_a_float() -> None:
    assert not [field.full_name for field in FIELDS if field.type in FLOATS]


def test_money_is_a_64_bit_integer_of_micro_credits_and_says_so() -> None:
    numbers = [field for field in FIELDS if field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_INT32}]
    assert not [field.full_name for field in numbers if MONEY_NAMES.search(field.name)]
    micros = [field for field in FIELDS if re.search(r"_micros(_|$)", field.name)]
    assert micros
    assert not [field.full_name for field in micros if field.type != field.TYPE_INT64]


@pytest.mark.parametrize("method", METHODS, ids=_by_name)
def test_every_method_is_called_by_a_test_over_the_wire(method: MethodDescriptor) -> None:
    assert re.search(rf"\.{method.name}\b", SERVICE_TESTS), f"no test in tests/services calls {_by_name(method)}"
