"""What a search varies, as data: ranges of numbers and a choice of placements; imports no Optuna, so that options are checked fast."""

import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Range = tuple[float, float]
PAPER_VALUES = {"temperature": 3.0, "kl_q": 1.0, "kl_p": 1.0, "branch_weight": 1.0}
RANGES = (*PAPER_VALUES, "learning_rate")
SUBSETS, ALL = "subsets", "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Ranges (LOW, HIGH), all searched on a log scale; LOW equal to HIGH fixes a number; None: not varied.

    `placement` is "subsets" (every non-empty subset of the pair's auxiliary classifiers), "all" (no choice), or the subsets to choose
    from as text ("1+3"); all of them is always a choice, since the paper's setting is trial 0 of every study.
    """

    temperature: Range = (1.0, 20.0)
    kl_q: Range = (0.1, 10.0)
    kl_p: Range = (0.1, 10.0)
    branch_weight: Range | None = None
    learning_rate: Range | None = None
    placement: str | tuple[str, ...] = SUBSETS

    def to_json(self) -> str:
        """Return the space as one line of JSON: what a study remembers it by."""
        return json.dumps(asdict(self), sort_keys=True)

    def placements(self, num_branches: int) -> list[str]:
        """Return the placements to choose from, all classifiers first.

        Raises:
            ValueError: one of them names a classifier that a network with `num_branches` doesn't have.
        """
        known = placements(num_branches)
        if isinstance(self.placement, str):
            return known if self.placement == SUBSETS else known[:1]
        for name in self.placement:
            if name not in known:
                raise ValueError(f"placement is {name!r}; accepted for {num_branches} auxiliary classifiers: {', '.join(known)}")
        return list(dict.fromkeys([known[0], *self.placement]))

    def check_learning_rate(self, learning_rate: float, network: str) -> None:
        """Raise ValueError where the range leaves out the learning rate of the paper's setting, which is trial 0."""
        if self.learning_rate is not None and not self.learning_rate[0] <= learning_rate <= self.learning_rate[1]:
            raise ValueError(
                f"learning_rate is {list(self.learning_rate)}; accepted for {network}: a range with the paper's {learning_rate:g} in it"
            )


def placements(num_branches: int) -> list[str]:
    """Return every non-empty subset of taps as text ("1+3"), all of them first."""
    taps = range(1, num_branches + 1)
    sizes = range(num_branches, 0, -1)
    return ["+".join(map(str, subset)) for size in sizes for subset in itertools.combinations(taps, size)]


def read_space(path: Path) -> SearchSpace:
    """Return the space that a TOML file describes; what it leaves out stays as it is by default.

    A file has lines such as `temperature = [1, 10]`, `kl_p = 1.0` (fixed), `branch_weight = [0.1, 10]`, `learning_rate = [0.01, 0.1]` and
    `placement = "all"` or `placement = ["1+2", "3"]`.

    Raises:
        ValueError: one sentence on the file, or on the key and value that can't be used.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--space is {path}, which can't be read ({error.strerror}); accepted: a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--space is {path}, which is not TOML ({str(error).splitlines()[0]})") from error
    try:
        return _space_of(values)
    except ValueError as error:
        raise ValueError(f"--space {path}: {error}") from error


def _space_of(values: Mapping[str, Any]) -> SearchSpace:
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name == "placement":
            chosen[name] = _placement(value)
        elif name in RANGES:
            chosen[name] = _range(name, value)
        else:
            raise ValueError(f"unknown key {name!r}; accepted: {', '.join((*RANGES, 'placement'))}")
    return SearchSpace(**chosen)


def _range(name: str, value: Any) -> Range:
    ends = value if isinstance(value, list) else [value, value]
    is_number = [isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends]
    paper = PAPER_VALUES.get(name)
    holds = f" with the paper's {paper:g} (always trial 0) in it" if paper is not None else ""
    if len(ends) != 2 or not all(is_number) or not 0 < ends[0] <= ends[1] or (paper is not None and not ends[0] <= paper <= ends[1]):
        raise ValueError(f"{name} is {value!r}; accepted: [LOW, HIGH] or one number, above 0{holds}")
    return float(ends[0]), float(ends[1])


def _placement(value: Any) -> str | tuple[str, ...]:
    if value in (SUBSETS, ALL):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f'placement is {value!r}; accepted: "{SUBSETS}", "{ALL}" or a list such as ["1+2", "3"]')


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchBudget:
    """How much one study may spend: a number of trials, or a multiple of one full student run, in which a pruned trial counts in part."""

    trials: int | None = None
    student_runs: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SearchBudget":
        """Return the budget that "20" (trials) or "12x" (student runs) means; raises ValueError on anything else."""
        number = text.removesuffix("x")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if text.endswith("x") and math.isfinite(value) and value >= 1:
            return cls(student_runs=value)
        if number == text and number.isdecimal() and value >= 1:
            return cls(trials=int(number))
        raise ValueError(f"--search-budget is {text}; accepted: a number of trials such as 20, or student runs such as 12x, 1 or more")

    @property
    def most_trials_at_full_cost(self) -> int:
        """Trials if none is pruned."""
        return self.trials if self.trials is not None else math.floor(self.student_runs or 0)
