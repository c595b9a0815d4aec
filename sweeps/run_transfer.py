"""`python sweeps/run_transfer.py --out RUNS --dataset stl10`: linear probes of a sweep's students, on the main command's engine."""

from hsakd.command_line import parse, run_command
from sweeps.cli import TransferOptions
from sweeps.run_pairs import run_work
from sweeps.transfer import transfer_work


def main() -> int:
    """Run the command; return its exit status: 0 only if every probe is complete."""
    return run_work(parse(TransferOptions), transfer_work)


if __name__ == "__main__":
    run_command(main)
