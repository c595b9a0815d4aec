"""What a table or figure module offers, and how `build.py` finds them: a file in `tables/` or `figures/` is all it takes to add one.

A module of `analysis.tables` has `build(results, options) -> list[Table]`, one of `analysis.figures` has `draw(results, options) ->
list[Drawing]`. Either raises `NothingToShow` with a sentence where the folder lacks trials that its plan asked for, and `NotAsked` where
the plan has none.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

from matplotlib.figure import Figure

T = TypeVar("T")


class NothingToShow(Exception):
    """The results hold no trials for this artefact; the message is a sentence for the reader."""


class NotAsked(NothingToShow):
    """The work-list never asked for this artefact, so its absence needs no sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`selection` is a key of `aggregate.SELECTIONS`; `force` averages trials of different settings, marked, instead of refusing."""

    selection: str = "last"
    force: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One figure, what it shows in a sentence or two, and the trials behind it."""

    name: str
    title: str
    caption: str
    figure: Figure
    trial_ids: tuple[str, ...] = ()


def each(studies: Iterable[str], make: Callable[[str], list[T]]) -> list[T]:
    """Return what `make` makes of the studies that the plan has; raises NotAsked (the first's) where it has none."""
    made, reasons = list[T](), list[NotAsked]()
    for study in studies:
        try:
            made += make(study)
        except NotAsked as reason:
            reasons.append(reason)
    if not made and reasons:
        raise reasons[0]
    return made


def discover(package: ModuleType) -> list[ModuleType]:
    """Return the modules of `package`, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]
