"""Every failure leaves in the shape of its route with its request id; what is no MeshError is told to the log alone."""

from __future__ import annotations

from dataclasses import dataclass

from gateway_svc import failures
from gateway_svc.access_tokens import SCOPE
from gateway_svc.dialects import Dialect
from gateway_svc.flow import ClientLeft
from gateway_svc.http.answers import JSON, Response, head_of
from gateway_svc.http.requests import Request
from gateway_svc.limits import RateExceeded
from gateway_svc.tellings import Telling
from gateway_svc.tellings.registry import OPENAI, TELLINGS
from mesh import ids
from mesh.errors import Code, Internal, MeshError
from mesh.telemetry import logs, metrics

CLIENT_CLOSED_REQUEST = 499
MESSAGES = TELLINGS[Dialect.MESSAGES]
CREDENTIALS = ("authorization", "x-api-key")
MESSAGES_PATH, MODELS_PATH = "/v1/messages", "/v1/models"
VERSION_HEADER = "anthropic-version"
INSTANCE_HEADER = "x-mandate-instance"

log = logs.get(__name__)


def is_anthropics(request: Request) -> bool:
    """Return whether Anthropic's clients ask: at its own paths, or by its header at those that both vendors have."""
    path = request.path.removeprefix("/gateway")
    return path.startswith(MESSAGES_PATH) or (path.startswith(MODELS_PATH) and request.has(VERSION_HEADER))


@dataclass(frozen=True, slots=True)
class Voice:
    """In which dialect a client is told, and of which request."""

    telling: Telling
    request_id: str

    @classmethod
    def of(cls, request: Request) -> Voice:
        """Return the voice of a route."""
        return cls(MESSAGES if is_anthropics(request) else OPENAI, request.id)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that name the request: ours, and that of the dialect."""
        return {"x-request-id": self.request_id, self.telling.request_id_header: self.request_id}

    def answer(self, error: MeshError) -> Response:
        """Return an error as an answer."""
        told = failures.failure(error)
        metrics.REFUSALS.labels(error.reason.lower()).inc()
        headers = {**told.headers, "content-type": JSON}
        if isinstance(error, RateExceeded):
            headers |= self.telling.rates(error.taken)
        return Response(told.status, self.telling.error_body(told.status, told.error, self.request_id), headers)


def raw(error: MeshError, instance: str, framing: str) -> bytes:
    """Return an error as the bytes of a last answer, for a connection of which no request was read."""
    voice = Voice(OPENAI, ids.new(ids.Kind.REQUEST))
    told = voice.answer(error)
    headers = {**told.headers, **voice.headers, INSTANCE_HEADER: instance}
    return head_of(told.status, headers, f"{framing}content-length: {len(told.body)}\r\n") + told.body


def answer_to(request: Request, error: Exception) -> Response:
    """Return an answer to whatever went wrong."""
    match error:
        case MeshError():
            return _challenging(request, error)
        case ClientLeft() | ConnectionError():
            return Response(CLIENT_CLOSED_REQUEST)
        case _:
            log.error("http.bug", error, request_id=request.id, path=request.path[:200])
            return Voice.of(request).answer(Internal("INTERNAL", "the gateway failed"))


def cut_off(request: Request, error: Exception) -> None:
    """End the connection of an answer that has begun: a second head would be read as a part of it."""
    if not isinstance(error, ClientLeft | ConnectionError):
        log.error("http.bug", error, request_id=request.id, path=request.path[:200])
        metrics.ANSWERS_CUT.inc()
    request.line.abort()


def _challenging(request: Request, error: MeshError) -> Response:
    """Return an error, with how to prove who asks where that was missing (RFC 6750, section 3)."""
    response = Voice.of(request).answer(error)
    if error.code is Code.UNAUTHENTICATED:
        shown = any(request.header(name) for name in CREDENTIALS)
        response.headers["www-authenticate"] = 'Bearer error="invalid_token"' if shown else 'Bearer realm="mandate"'
    elif error.reason == "INSUFFICIENT_SCOPE":
        response.headers["www-authenticate"] = f'Bearer error="insufficient_scope", scope="{SCOPE}"'
    elif error.reason == "METHOD_NOT_ALLOWED":
        response.headers["allow"] = error.details["allow"]
    return response
