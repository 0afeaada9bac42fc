"""Errors cross the wire intact: MeshError to google.rpc.Status and back. The only module that knows both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from mandate.type.v1 import fault_pb2
from mesh import errors

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "mandate"
DETAILS_KEY = "grpc-status-details-bin"
STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: errors.MeshError) -> status_pb2.Status:
    """Pack an error with ErrorInfo, and BadRequest, QuotaFailure or RetryInfo where they say more."""
    parts: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)]
    if isinstance(error, errors.InvalidArgument) and "field" in error.details:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.details["field"], description=error.message)
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.Exhausted):
        subject = error.details.get("account", error.details.get("limit", ""))
        quota = error_details_pb2.QuotaFailure.Violation(subject=subject, description=error.message)
        parts.append(error_details_pb2.QuotaFailure(violations=[quota]))
    if error.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        parts.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details: list[any_pb2.Any] = []
    for part in parts:
        packed = any_pb2.Any()
        packed.Pack(part)
        details.append(packed)
    return status_pb2.Status(code=int(error.code), message=error.message, details=details)


def from_status(status: status_pb2.Status) -> errors.MeshError | None:
    """Rebuild the error that `to_status` packed, or None when the mesh did not pack it."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_ms: int | None = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
        else:
            detail.Unpack(info)  # leaves it empty when it is something else
    if info.domain != DOMAIN:
        return None
    return rebuild(status.code, info.reason, status.message, dict(info.metadata), retry_after_ms)


def rebuild(
    code: int, reason: str, message: str, details: dict[str, str], retry_after_ms: int | None = None
) -> errors.MeshError:
    """Build the error kind that belongs to a numeric code."""
    kind = errors.KINDS.get(errors.Code(code), errors.Internal) if code in set(errors.Code) else errors.Internal
    error = kind(reason, message, retry_after_ms=retry_after_ms)
    error.details = details
    return error


def from_rpc(failure: grpc.aio.AioRpcError) -> errors.MeshError:
    """Turn a failed call into the error that the far side raised; a broken connection is Unavailable."""
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            error = from_status(status_pb2.Status.FromString(value))
            if error is not None:
                return error
    match failure.code():
        case grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable("SERVICE_UNAVAILABLE", "a service of the mesh cannot be reached")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded("DEADLINE_EXCEEDED", "the call took longer than it was given")
        case grpc.StatusCode.CANCELLED:
            return errors.Unavailable("CALL_CANCELLED", "the call was cancelled")
        case _:
            return errors.Internal("INTERNAL", "a service of the mesh failed")


def to_fault(error: errors.MeshError) -> fault_pb2.Fault:
    """Pack an error as one item's failure in a batch."""
    metadata = dict(error.details)
    if error.retry_after_ms is not None:
        metadata["retry_after_ms"] = str(error.retry_after_ms)
    return fault_pb2.Fault(code=int(error.code), reason=error.reason, message=error.message, metadata=metadata)


def from_fault(fault: fault_pb2.Fault) -> errors.MeshError:
    """Rebuild the error that `to_fault` packed."""
    metadata = dict(fault.metadata)
    retry = metadata.pop("retry_after_ms", None)
    return rebuild(fault.code, fault.reason, fault.message, metadata, int(retry) if retry else None)
