"""`python -m hsakd.models`: every network, its parameters, multi-adds, branches and tap shapes."""

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters, network_names
from hsakd.models.counting import tap_shapes
from hsakd.network_table import TABLE_FILE, TABLE_IMAGE_SIZE, TABLE_NUM_CLASSES, NetworkFacts


def measure(name: str, *, num_classes: int = TABLE_NUM_CLASSES, image_size: int = TABLE_IMAGE_SIZE) -> NetworkFacts:
    """Count a network, built without memory."""
    network = HierarchicalNet.on_meta(name, num_classes=num_classes)
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, image_size)
    return NetworkFacts(
        family=network.spec.family,
        num_branches=network.num_branches,
        parameters=parameters.backbone,
        branch_parameters=parameters.branches,
        multi_adds=multi_adds.backbone,
        branch_multi_adds=multi_adds.branches,
        tap_shapes=tap_shapes(network, image_size),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hsakd.models", description="List every network.")
    parser.add_argument("--num-classes", type=int, default=TABLE_NUM_CLASSES)
    parser.add_argument("--image-size", type=int, default=TABLE_IMAGE_SIZE, help="pixels")
    parser.add_argument("--write-table", action="store_true", help=f"write {TABLE_FILE.name}, read by everything that needs no torch")
    options = parser.parse_args()
    if options.num_classes < 1:
        parser.error(f"--num-classes is {options.num_classes}; accepted: 1 or more")
    if options.image_size < 16:
        parser.error(f"--image-size is {options.image_size}; accepted: 16 or more pixels")
    if options.write_table:
        rows = {name: dataclasses.asdict(measure(name)) for name in network_names()}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        TABLE_FILE.write_text(f"{{\n{lines}\n}}\n")
    table = Table(title=f"{options.num_classes} classes, {options.image_size} px, 4 rotations")
    for title in ("network", "parameters", "of branches", "multi-adds", "of branches", "L", "tap shapes"):
        table.add_column(title, justify="left" if title in ("network", "tap shapes") else "right", no_wrap=True)
    for name in network_names():
        facts = measure(name, num_classes=options.num_classes, image_size=options.image_size)
        table.add_row(
            name,
            f"{facts.parameters:,}",
            f"{sum(facts.branch_parameters):,}",
            f"{facts.multi_adds:,}",
            f"{sum(facts.branch_multi_adds):,}",
            str(facts.num_branches),
            " ".join(f"{channels}@{height}" for channels, height, _ in facts.tap_shapes),
        )
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


if __name__ == "__main__":
    main()
