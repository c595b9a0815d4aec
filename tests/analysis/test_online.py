"""Online mutual distillation in Table 1: a row of its own, the published number of the same pair beside it."""

import json
from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.build import main
from analysis.uniform import grounds
from hsakd.config import DataConfig, TrialConfig
from sweeps.worklist import ONLINE_OBJECTIVE

METHOD = "HSSAKD (online)"


def test_the_online_row_stands_beside_the_published_one_of_a_network_with_itself(folder: Callable[..., Any]) -> None:
    run = folder(teacher="resnet56", student="resnet56", is_papers=True)
    for seed, top1 in enumerate((77.0, 78.0, 79.0)):
        config = run.config("resnet56", terms=ONLINE_OBJECTIVE.terms, peer="resnet56", seed=seed)
        run.add(config, "report", METHOD, top1, seed=seed)
    assert main([str(run.write())]) == 0
    table = pd.read_csv(run.root / "tables/table1.csv").set_index("row")
    assert table.loc[METHOD, "text"] == "78.00 ± 1.00 (3)"
    assert table.loc[f"{METHOD}, published (best-test)", "text"] == "78.16 ± 0.56"


def test_rows_of_an_older_version_share_a_column_with_newer_ones() -> None:
    config = TrialConfig(network="resnet20", data=DataConfig(dataset="digits"))
    older = json.loads(config.to_json())
    del older["data"]["folder"]
    assert grounds(json.dumps(older)) == grounds(config.to_json())
