"""Names with `*` in them: a star stands for any run of characters, and nothing else is special. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

COMPILED_MAX = 4_096
VERDICTS_MAX = 16_384
NAME_CHARACTERS_MAX = 256
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern with at least one star: what stands before the first, between them, and after the last."""

    start: str
    middle: tuple[str, ...]
    end: str

    @classmethod
    def of(cls, pattern: str) -> Glob:
        """Split a pattern at its stars."""
        start, *middle, end = pattern.split("*")
        return cls(start, tuple(part for part in middle if part), end)

    def matches(self, name: str) -> bool:
        """Return whether it takes a name in; each part is looked for once, from where the one before it ended."""
        if len(name) < len(self.start) + len(self.end):
            return False
        if not (name.startswith(self.start) and name.endswith(self.end)):
            return False
        at, last = len(self.start), len(name) - len(self.end)
        for part in self.middle:
            found = name.find(part, at, last)
            if found < 0:
                return False
            at = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class Patterns:
    """A list of names and globs, ready to be asked."""

    names: frozenset[str]
    globs: tuple[Glob, ...]

    def match(self, name: str) -> bool:
        """Return whether any of them takes a name in."""
        return name in self.names or any(glob.matches(name) for glob in self.globs)


@lru_cache(maxsize=COMPILED_MAX)
def compiled(patterns: frozenset[str]) -> Patterns:
    """Split a list once; the lists asked for last are kept."""
    names = frozenset(pattern for pattern in patterns if "*" not in pattern)
    return Patterns(names, tuple(Glob.of(pattern) for pattern in sorted(patterns - names)))


def permit(lists: frozenset[frozenset[str]], name: str) -> bool:
    """Return whether every one of several lists takes a name in; no list takes in one of over 256 characters."""
    return len(name) <= NAME_CHARACTERS_MAX and _permitted(lists, name)


@lru_cache(maxsize=VERDICTS_MAX)
def _permitted(lists: frozenset[frozenset[str]], name: str) -> bool:
    return all(compiled(patterns).match(name) for patterns in lists)
