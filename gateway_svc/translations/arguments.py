"""Calls as they are written: whose a piece is, and whether the arguments are whole; each is looked at once. Pure."""

from __future__ import annotations

import re

from gateway_svc.translations.provided import object_of

MARKS = re.compile(r'[{}"\\]')
SPACES = " \t\r\n"  # of JSON; str.strip takes more


class Arguments:
    """The text of one call's arguments."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = False
        self._escaped = False  # the next character stands for itself
        self._begun = False
        self._closed = False  # the first object has ended
        self._broken = False  # it did not begin as an object, or goes on after one
        self._whole: bool | None = None

    def add(self, piece: str) -> None:
        """Take in what follows."""
        self._pieces.append(piece)
        if not self._broken:
            self._follow(piece)

    def text(self) -> str:
        """Return all of it."""
        return "".join(self._pieces)

    def complete(self) -> bool:
        """Return whether this is an object, to which nothing can be added."""
        if not self._closed or self._broken:
            return False
        if self._whole is None:
            self._whole = object_of(self.text()) is not None
        return self._whole

    def _follow(self, piece: str) -> None:
        place = 0
        if not self._begun:
            told = piece.lstrip(SPACES)
            if not told:
                return
            self._begun, self._broken = True, not told.startswith("{")
            place = len(piece) - len(told)
        while not self._closed:
            if self._escaped:
                if place >= len(piece):
                    return
                self._escaped, place = False, place + 1
            found = MARKS.search(piece, place)
            if found is None:
                return
            place = found.end()
            self._mark(found[0])
        if piece[place:].strip(SPACES):
            self._broken = True

    def _mark(self, mark: str) -> None:
        match mark:
            case '"':
                self._quoted = not self._quoted
            case "\\":
                self._escaped = self._quoted
            case "{" if not self._quoted:
                self._depth += 1
            case "}" if not self._quoted:
                self._depth -= 1
                self._closed = self._depth == 0
            case _:
                pass


class Places:
    """Which call a delta is of: some servers give every call the index 0, and others repeat the id."""

    def __init__(self) -> None:
        self._places: dict[tuple[int | str | None, str], int] = {}

    def add(self, place: int, index: int | str | None, call_id: str) -> None:
        """Begin a call; deltas of its index that tell no id are its own from now on."""
        self._places[index, call_id] = self._places[index, ""] = place

    def of(self, index: int | str | None, call_id: str) -> int | None:
        """Return the call's place; None for one that begins."""
        return self._places.get((index, call_id))
