"""`python -m tests.benchmarks.evaluation`: seconds to evaluate images so many at once, on one thread, best of three alternating rounds."""

import time
from dataclasses import dataclass

import torch

from hsakd.command_line import parse
from hsakd.models import create_network
from hsakd.training.evaluate import evaluate

ROUNDS = 3
BEFORE = 500  # images at once on every device, until they were found to exceed a CPU's caches


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Compare numbers of images that are evaluated at once."""

    networks: tuple[str, ...] = ("resnet8_half", "resnet20", "wrn_16_2", "shufflenet_v1")
    """Networks."""
    images: int = 1000
    """Images of 32x32 pixels."""
    at_once: tuple[int, ...] = (32, 64, 128, 250)
    """Compared with 500."""


def main(options: EvaluationOptions) -> None:
    """Print the seconds of each number at once, and how many times as fast as 500 it is."""
    torch.set_num_threads(1)
    pixels, labels = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8), torch.zeros(options.images, dtype=torch.int64)
    for name in options.networks:
        network = create_network(name, num_classes=100).to(memory_format=torch.channels_last)
        best: dict[int, float] = {}
        for _ in range(ROUNDS):
            for count in (*options.at_once, BEFORE):
                started = time.process_time()
                evaluate(network, pixels, labels, mean=(0.5,) * 3, std=(0.25,) * 3, batch_size=count)
                best[count] = min(best.get(count, float("inf")), time.process_time() - started)
        texts = [f"{count} at once {seconds:.2f} s ({best[BEFORE] / seconds:.2f}x)" for count, seconds in best.items()]
        print(f"{name}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main(parse(EvaluationOptions))
