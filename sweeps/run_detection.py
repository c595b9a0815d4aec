"""`python sweeps/run_detection.py --out RUNS --data-dir VOC`: detectors on a sweep's students, on the main command's engine."""

from hsakd.command_line import parse, run_command
from sweeps.cli import DetectionOptions
from sweeps.detection import detection_work
from sweeps.run_pairs import run_work


def main() -> int:
    """Run the command; return its exit status: 0 only if every detector is complete."""
    return run_work(parse(DetectionOptions), detection_work)


if __name__ == "__main__":
    run_command(main)
