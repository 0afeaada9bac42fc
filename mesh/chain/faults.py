"""A MeshError leaves as its status; any other exception leaves as INTERNAL and is told to the log alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import grpc

from mesh import faults
from mesh.chain import Call
from mesh.errors import Code, Internal, MeshError
from mesh.telemetry import logs

log = logs.get(__name__)


@asynccontextmanager
async def step(call: Call) -> AsyncGenerator[None]:
    """Turn what a handler raises into the status that its caller receives."""
    try:
        yield
    except MeshError as error:
        await _abort(call, error)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.AioRpcError as failure:
        await _abort(call, faults.from_rpc(failure))
    except TimeoutError:
        call.code = Code.DEADLINE_EXCEEDED
        await call.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took longer than it was given")
    except Exception as bug:  # noqa: BLE001  # the edge of the process: whatever is left is a bug and must not leak
        log.error("rpc.bug", bug, method=call.method)
        await _abort(call, Internal("INTERNAL", "a service of the mesh failed"))


async def _abort(call: Call, error: MeshError) -> None:
    call.code = error.code
    details = ((faults.DETAILS_KEY, faults.to_status(error).SerializeToString()),)
    await call.context.abort(faults.STATUS_CODES[int(error.code)], error.message, details)
