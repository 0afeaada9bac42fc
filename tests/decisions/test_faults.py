from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import errors, faults

KINDS = sorted(errors.KINDS.values(), key=lambda kind: kind.__name__)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=50)


@given(
    kind=st.sampled_from(KINDS),
    message=texts,
    details=st.dictionaries(st.sampled_from(["field", "account", "limit", "agent"]), texts),
    retry_after_ms=st.none() | st.integers(0, 10**6),
)
def test_an_error_crosses_the_wire_intact(
    kind: type[errors.MeshError], message: str, details: dict[str, str], retry_after_ms: int | None
) -> None:
    sent = kind("SOME_REASON", message, retry_after_ms=retry_after_ms)
    sent.details = details
    for received in (faults.from_status(faults.to_status(sent)), faults.from_fault(faults.to_fault(sent))):
        assert received is not None
        assert type(received) is kind
        assert received.reason == "SOME_REASON"
        assert received.message == message
        assert received.details == details
        assert received.retry_after_ms == retry_after_ms


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_a_status_code_of_its_own(kind: type[errors.MeshError]) -> None:
    assert faults.STATUS_CODES[int(kind.code)].name == kind.code.name


def test_a_bad_field_is_named_in_bad_request() -> None:
    status = faults.to_status(errors.invalid("name", "must not be empty"))
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["ErrorInfo", "BadRequest"]


def test_a_status_that_the_mesh_did_not_make_is_not_taken_for_one() -> None:
    status = faults.to_status(errors.NotFound("X", "x"))
    del status.details[:]
    assert faults.from_status(status) is None
