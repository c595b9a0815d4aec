"""`python sweeps/run_ablation.py --study loss-terms`: the ablation studies, on the same engine as the main command."""

from hsakd.command_line import parse, run_command
from sweeps.ablations import ablation_work
from sweeps.cli import AblationOptions
from sweeps.run_pairs import run_work


def main() -> int:
    """Run the command; return its exit status: 0 only if every study is complete."""
    options = parse(AblationOptions)
    return run_work(options, ablation_work)


if __name__ == "__main__":
    run_command(main)
