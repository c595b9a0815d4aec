"""The recipes: executed as far as one machine allows, and validated where it doesn't."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

from hsakd.command_line import parse
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.status import read_progress

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SMALL = ("--preset", "digits", "--pairs", "resnet14-resnet8_half", "--seeds", "1", "--epochs", "2", "--methods", "Student", "HSAKD*")


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HSAKD_RUN": "trainables:quick",
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "PYTHON": sys.executable,
        "RAY": str(Path(sys.executable).parent / "ray"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_well_formed(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


def test_the_kubernetes_manifest_fits_its_schema_and_a_wrong_one_does_not() -> None:
    schema, manifest = json.loads((RECIPES / "rayjob.schema.json").read_text()), yaml.safe_load((RECIPES / "rayjob.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema)
    for path, value in (
        (("spec", "backofLimit"), 1),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("apiVersion",), "ray.io/v1alpha1"),
        (("metadata", "name"), "8-pairs"),  # the operator wants a DNS label of RFC 1035: a letter first
        (("spec", "submissionMode"), "InteractiveMode"),  # which the operator refuses with retries
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), 2**31),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
    ):
        wrong = deepcopy(manifest)
        place = wrong
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_manifests_command_is_one_that_the_parser_accepts() -> None:
    manifest = yaml.safe_load((RECIPES / "rayjob.yaml").read_text())
    python, script, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert (python, script.endswith("sweeps/run_pairs.py")) == ("python", True)
    options = parse(SweepOptions, arguments)
    gpus = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    per_node = int(gpus["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert options.gpus == per_node * gpus["maxReplicas"]


def test_the_slurm_recipes_example_is_one_that_the_parser_accepts() -> None:
    text = (RECIPES / "slurm.sh").read_text()
    example = re.search(r"sbatch recipes/slurm.sh (.*)", text)
    assert example is not None
    options = parse(SweepOptions, shlex.split(example[1]))
    nodes, gpus = (int(value) for value in re.findall(r"--(?:nodes|gpus-per-node)=(\d+)$", text, re.MULTILINE))
    assert options.gpus == nodes * gpus


def node_script(tmp_path: Path, ray: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that keeps a Ray node whose `ray` is a shell script, and its environment; each start is a line of `starts`."""
    tool = tmp_path / "ray"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/starts\n{ray}')
    tool.chmod(0o755)
    return [str(RECIPES / "ray_node.sh"), "--address", "HEAD:6379"], {**os.environ, "RAY": str(tool), "NODE_LOG": str(tmp_path / "log")}


def test_a_node_that_does_not_come_up_is_started_again_and_stops_when_told(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    command, values = node_script(tmp_path, f"[ $(wc -l < {starts}) -gt 1 ] || exit 1\necho up\nexec sleep 1000")
    node = subprocess.Popen(command, env=values, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 900
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text() != "up\n":
        assert time.monotonic() < limit
        assert node.poll() is None
        time.sleep(0.05)
    node.terminate()
    _, said = node.communicate(timeout=900)
    assert node.returncode == 0
    assert re.fullmatch(r"a Ray node ended after \d+ s \(status 1, start 1 of 3\)\n", said)
    assert starts.read_text() == "start --block --address HEAD:6379\n" * 2


def test_a_node_that_never_comes_up_is_given_up(tmp_path: Path) -> None:
    command, values = node_script(tmp_path, "exit 7")
    node = subprocess.run(command, env=values, capture_output=True, text=True, timeout=900, check=False)
    assert node.returncode == 7
    assert node.stderr.splitlines()[-1].endswith("s (status 7, start 3 of 3)")


@pytest.mark.slow
def test_a_sweep_runs_on_several_local_nodes_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = environment(NODES="2", CPUS="1", GPUS="0")
    before = set(Path("/tmp").glob("hsakd-nodes-*"))
    script = subprocess.run(
        [str(RECIPES / "local_nodes.sh"), *SMALL, "--gpus", "0", "--out", str(out)],
        env=values,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert script.returncode == 0, script.stdout + script.stderr
    assert len(ResultStore(out).trial_ids()) == 3
    assert set(Path("/tmp").glob("hsakd-nodes-*")) <= before


@pytest.mark.slow
def test_a_slurm_job_that_is_signalled_checkpoints_and_is_requeued(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/sh\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi\n')
    srun = 'while [ "${1#--}" != "$1" ]; do shift; done\necho "cores ${SRUN_CPUS_PER_TASK:-1}: $*" >> "$STEPS"\nexec "$@"\n'
    (tools / "srun").write_text(f"#!/bin/sh\n{srun}")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    out, requeued, steps = tmp_path / "out", tmp_path / "requeued", tmp_path / "steps"
    values = environment(
        PATH=f"{tools}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(os.getpid()),
        SLURM_JOB_NODELIST="node",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_CPUS_PER_TASK="2",
        REQUEUED=str(requeued),
        STEPS=str(steps),
        HSAKD_TEST_EPOCH_SECONDS="5",
    )
    line = [str(RECIPES / "slurm.sh"), *SMALL, "--gpus", "0", "--out", str(out)]
    job = subprocess.Popen(line, env=values, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = time.monotonic() + 900
    while (progress := read_progress(ResultStore(out))) is None or not progress.running:
        assert time.monotonic() < limit
        assert job.poll() is None, job.communicate()
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 130, output
    assert requeued.read_text() == f"requeue {os.getpid()}\n"
    assert re.fullmatch(r"cores 2: \S*ray_node.sh --head .* --num-cpus 2 .*\n", steps.read_text())
    again = subprocess.run(line, env={**values, "HSAKD_TEST_EPOCH_SECONDS": "0"}, capture_output=True, text=True, timeout=900, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert requeued.read_text().count("requeue") == 1
