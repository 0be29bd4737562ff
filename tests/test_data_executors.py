"""The same corpus through Slurm's and Ray's executors: the bytes are those of one machine."""

from __future__ import annotations

import os
import stat
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from tiny_corpus import SOURCE, VOICES, write_recordings

from dataset_scripts.build import build

SETTINGS = {"voices": VOICES, "rows_per_shard": 15, "eval_rows": 10, "validation_rows": 5}
SBATCH = """#!/bin/bash
# Runs an array job at once, one task after the other, as Slurm would: SLURM_ARRAY_TASK_ID counts.
script=/dev/null
for argument in "$@"; do
  [ -f "$argument" ] && script="$argument"
  case "$argument" in --export=*) export "${argument##*,}" ;; esac
done
export SLURM_NODELIST=localhost SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_CPU=1
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for i in $(seq 0 "${array:-0}"); do SLURM_ARRAY_TASK_ID=$i bash "$script" > /dev/null 2>> "$JOBS_LOG" || exit 1; done
echo "Submitted batch job 7"
"""
SCONTROL = """#!/bin/bash
echo localhost
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("data/*/*"))}


@pytest.fixture
def here(tmp_path: Path):
    """The tiny source, and its corpus built in this process."""
    source = SOURCE.at(write_recordings(tmp_path / "tiny"), notes=6, questions=4)
    return source, digests(build("instruct", [source], tmp_path / "here", clips=tmp_path / "clips", **SETTINGS))


@pytest.mark.slow
def test_slurm(here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, expected = here
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        (commands / name).write_text(script)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("JOBS_LOG", str(tmp_path / "jobs.log"))
    options = {"partition": "cpu", "time": "0:10:00", "tasks_per_job": 4}
    out = build(
        "instruct", [source], tmp_path / "slurm", executor="slurm", executor_options=options, workers=2, **SETTINGS
    )
    assert (out / "build.json").exists(), (tmp_path / "jobs.log").read_text()[-2000:]
    assert digests(out) == expected


@pytest.mark.slow
def test_ray_on_two_nodes(here, tmp_path: Path):
    pytest.importorskip("ray", reason="ray is not installed; the executor needs it only where it is asked for")
    import ray
    from ray.cluster_utils import Cluster

    source, expected = here
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
        options = {"mem_per_cpu_gb": 0.5}
        out = build(
            "instruct", [source], tmp_path / "ray", executor="ray", executor_options=options, workers=2, **SETTINGS
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert digests(out) == expected
