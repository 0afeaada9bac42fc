"""Which handler answers what: paths with their methods, of which the last part of one may be anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from gateway_svc.http.answers import Response, Stream
from gateway_svc.http.requests import Request
from mesh.errors import InvalidArgument, NotFound

Handler: TypeAlias = Callable[[Request], Awaitable[Response | Stream]]
GAP = "{"


class Routes:
    """The handlers of one server, by path and method."""

    def __init__(self) -> None:
        self._whole: dict[str, dict[str, Handler]] = {}
        self._open: dict[str, dict[str, Handler]] = {}  # by what stands before the gap
        self._names: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Give the method and the path of every route."""
        return iter(self._names)

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Add a route; `{…}` at the end of a path stands for one character or more. GET is HEAD as well."""
        start, gap, _ = path.partition(GAP)
        methods = (self._open if gap else self._whole).setdefault(start, {})
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            methods[each] = handler
            self._names.append((each, path))

    def of(self, request: Request) -> Handler:
        """Return what answers a request; raise what it is told where nothing does."""
        methods = self._whole.get(request.place) or self._with_tail(request)
        handler = methods.get(request.method)
        if handler is None:
            text = f"{request.method} is not allowed here"
            raise InvalidArgument("METHOD_NOT_ALLOWED", text, allow=", ".join(sorted(methods)))
        return handler

    def _with_tail(self, request: Request) -> dict[str, Handler]:
        place = request.place
        for start, methods in self._open.items():
            if place.startswith(start) and len(place) > len(start):
                request.tail = place[len(start) :].replace("%2F", "/").replace("%25", "%")
                return methods
        raise NotFound("UNKNOWN_URL", f"there is nothing at {request.path[:200]}")
