"""Accept from a socket that several processes share, one connection a turn of the loop.

The event loops' own servers take every connection that waits, so that one process would serve a whole burst while the
others idle. What is done with a connection is the protocol's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mesh.telemetry import logs

if TYPE_CHECKING:
    import socket

PAUSE_SECONDS = 0.1  # when the process is out of descriptors: those in use are given back meanwhile

log = logs.get(__name__)


class Acceptor:
    """Hands each connection of `listener` to a new protocol of `factory`."""

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept no more; connections that wait in the socket are left to the other processes, where it has any."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was quicker, or the client is gone
        except OSError as error:
            log.error("http.not_accepted", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(PAUSE_SECONDS, self._resume)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._factory, connection))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _resume(self) -> None:
        if not self._stopped:
            self._loop.add_reader(self._listener, self._accept)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("http.not_opened", error)
