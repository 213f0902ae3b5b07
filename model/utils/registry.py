"""Tables of implementations by name, which a user's own module can add to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

_T = TypeVar("_T")


class Registry(Mapping[str, _T]):
    """Implementations by name, in the order in which they were registered.

    Args:
        kind: noun for one of them, which starts the error messages.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._found: dict[str, _T] = {}

    def register(self, name: str) -> Callable[[_T], _T]:
        """Return a decorator that adds an implementation under a name.

        Args:
            name: name in settings and configurations.

        Raises:
            ValueError: the decorator is used on a second implementation of that name.
        """

        def add(implementation: _T) -> _T:
            if self._found.setdefault(name, implementation) is not implementation:
                raise ValueError(f"{self.kind}: expected a name that is free, got {name!r}")
            return implementation

        return add

    def __getitem__(self, name: str) -> _T:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def unknown(self, name: object) -> ValueError:
        """Return the error for a name that is not registered."""
        return ValueError(f"{self.kind}: expected one of {', '.join(self)}, got {name!r}")
