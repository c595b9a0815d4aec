"""`--initialization authors` reaches every trial that is trained, and the default renames none."""

from pathlib import Path

from sweeps.cli import SweepOptions, parse
from sweeps.worklist import known_work


def test_the_option_reaches_every_trial_and_its_requirements(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--preset", "digits"]
    chosen = known_work(parse(SweepOptions, [*arguments, "--initialization", "authors"]))
    trials = [trial for _, config in chosen for trial in (config, *config.requirements())]
    assert {trial.numerics.initialization for trial in trials} == {"authors"}
    default = known_work(parse(SweepOptions, arguments))
    assert {config.numerics.initialization for _, config in default} == {"he"}
    assert {config.trial_id for _, config in default}.isdisjoint(config.trial_id for _, config in chosen)
    stated = known_work(parse(SweepOptions, [*arguments, "--initialization", "he"]))
    assert [config.trial_id for _, config in stated] == [config.trial_id for _, config in default]
