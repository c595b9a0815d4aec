"""Named plug points: networks, loss terms, data sets and tables are looked up here and nowhere else."""

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to one object of a kind.

    A name is registered once; asking for an unknown name raises a `KeyError` whose text lists the known ones.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`.

        Raises:
            ValueError: `name` is taken.
        """

        def file_entry(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self._entries[name] = entry
            return entry

        return file_entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise KeyError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def discover(package: str, path: Iterable[str]) -> None:
    """Import every module of the package (`__main__` apart), so that what registers itself there does so by being a file."""
    for module in pkgutil.iter_modules(list(path)):
        if module.name != "__main__":
            import_module(f"{package}.{module.name}")
