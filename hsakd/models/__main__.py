"""`python -m hsakd.models` lists every network; `--write-table` writes the torch-free table of facts."""

import json
import sys
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters, network_names
from hsakd.network_table import TABLE_FILE, NetworkFacts


def facts_of(name: str) -> NetworkFacts:
    """Count one network."""
    is_imagenet = name.endswith("_imagenet")
    size, num_classes = (224, 1000) if is_imagenet else (32, 100)
    network = HierarchicalNet.on_meta(name, num_classes=num_classes)
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, size)
    with torch.no_grad():
        features = network.eval()(torch.empty(1, 3, size, size, device="meta")).features
    return NetworkFacts(
        num_classes=num_classes,
        image_size=size,
        parameters=parameters.backbone,
        multi_adds=multi_adds.backbone,
        branch_parameters=parameters.branches,
        branch_multi_adds=multi_adds.branches,
        tap_shapes=tuple((maps.shape[1], maps.shape[2], maps.shape[3]) for maps in features),
    )


def main() -> None:
    facts = {name: facts_of(name) for name in network_names()}
    if "--write-table" in sys.argv[1:]:
        TABLE_FILE.write_text(json.dumps({name: asdict(row) for name, row in facts.items()}, indent=1) + "\n")
        return
    table = Table("network", "parameters", "multi-adds", "branches", "with branches", "taps (C x H x W)")
    for name, row in facts.items():
        table.add_row(
            name,
            f"{row.parameters:,}",
            f"{row.multi_adds / 1e6:,.1f} M",
            str(row.num_branches),
            f"{(row.multi_adds + sum(row.branch_multi_adds)) / 1e6:,.1f} M",
            ", ".join("x".join(map(str, shape)) for shape in row.tap_shapes),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
