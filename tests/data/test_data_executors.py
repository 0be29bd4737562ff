"""The same corpus through Slurm's and Ray's executors: the bytes are those of one machine."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from support.tiny_corpus import SOURCE, VOICES, held_up, write_public_corpora, write_recordings

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
def test_slurm_builds_the_same_bytes(here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, expected = here
    install(tmp_path / "bin", monkeypatch, sbatch=SBATCH, scontrol=SCONTROL, srun=SRUN, squeue="#!/bin/bash\n")
    monkeypatch.setenv("JOBS_LOG", str(tmp_path / "jobs.log"))
    options = {"partition": "cpu", "time": "0:10:00", "tasks_per_job": 4}
    out = build(
        "instruct", [source], tmp_path / "slurm", executor="slurm", executor_options=options, workers=2, **SETTINGS
    )
    assert (out / "build.json").exists(), (tmp_path / "jobs.log").read_text()[-2000:]
    assert digests(out) == expected


def test_a_queued_job_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor does a job whose dependency can never be satisfied stand in the way of the next."""
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 1), recordings=0, notes=6, questions=0)
    submitted, queue = tmp_path / "submitted", tmp_path / "queue"
    sbatch = f'#!/bin/bash\ngrep -oh "job-name=.*" "${{@: -1}}" >> {submitted}\necho Submitted batch job 7\n'
    squeue = f'#!/bin/bash\necho "$@" > {tmp_path / "asked"}\ncat {queue}\n'
    install(tmp_path / "bin", monkeypatch, sbatch=sbatch, squeue=squeue)
    chosen = {"executor": "slurm", "executor_options": {"partition": "cpu", "time": "0:10:00"}, **SETTINGS}

    def submissions(waiting: str) -> list[str]:
        queue.write_text(waiting)
        build("instruct", [source], tmp_path / "out", **chosen)
        return submitted.read_text().splitlines()

    first = submissions("")  # the array, and the job that merges datatrove's statistics
    assert len(first) == 2 and len(set(first)) == 1
    assert submissions("7 Priority\n8 Dependency\n") == first
    assert first[0].removeprefix("job-name=") in (tmp_path / "asked").read_text().split()
    assert submissions("8 DependencyNeverSatisfied\n") == first * 2
    install(tmp_path / "bin", monkeypatch, squeue="#!/bin/bash\necho slurm_load_jobs error >&2\nexit 1\n")
    with pytest.raises(OSError, match="squeue failed: slurm_load_jobs error"):
        build("instruct", [source], tmp_path / "out", **chosen)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Stand-ins for a cluster's commands, found before all others."""
    folder.mkdir(exist_ok=True)
    for name, script in commands.items():
        (folder / name).write_text(script)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.slow
def test_ray_on_two_nodes_builds_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`llaso data build --executor ray` on a cluster of two nodes with a processor each, both at work at once."""
    ray = pytest.importorskip("ray", reason="ray is not installed (extra `ray`)")
    from ray.cluster_utils import Cluster

    file = write_public_corpora(tmp_path, takes=2)
    file.write_text(file.read_text() + "ray: {mem_per_cpu_gb: 0.5}\n")
    here = build_command(file, tmp_path / "here", "local")
    assert here.wait() == 0, here.stderr.read()
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")  # Ray's own 15 s are short for a busy machine
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
        there = build_command(file, tmp_path / "there", "ray", RAY_ADDRESS=cluster.address)
        idle = []
        while there.poll() is None:
            idle.append(ray.available_resources().get("CPU", 0.0))
            time.sleep(0.2)
        assert there.returncode == 0, there.stderr.read()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert min(idle) == 0.0
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


def test_shards_that_were_not_built_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray's executor keeps its tasks' errors to its logs, as if all had gone well; the build says where."""
    monkeypatch.setattr("dataset_scripts.executors.run", lambda *_: None)
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 1), recordings=0, notes=6, questions=0)
    with pytest.raises(OSError, match=r"of \d shards could not be built, .* first; .*logs says why"):
        build("instruct", [source], tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out" / "build.json").exists()


def test_a_killed_worker_ends_the_build_with_a_clear_line(tmp_path: Path):
    """The kernel kills one of two workers, as for want of memory: the build ends at once, and goes on afterwards."""
    file, out = write_public_corpora(tmp_path), tmp_path / "out"
    planned = build_command(file, out, "local", command="plan")
    assert planned.wait(120) == 0, planned.stderr.read()
    rows = "".join(rows.read_text() for rows in sorted(out.glob(".build/plan/rows/*.jsonl")))
    with held_up(Path(re.findall(r'"path": "([^"]+wav)"', rows)[-1])):  # its worker waits for it
        process = build_command(file, out, "local")
        deadline = time.monotonic() + 120
        while len(parts := list(out.glob("data/*/.*.part"))) != 1 or not list(out.glob("data/*/*.parquet")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(int(parts[0].suffixes[-2].rpartition("-")[2]), signal.SIGKILL)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 2 and "a worker process was lost" in errors and "Traceback" not in errors
    again = build_command(file, out, "local")
    assert again.wait(120) == 0, again.stderr.read()
    assert (out / "build.json").exists() and not list(out.rglob(".*.part"))


def build_command(
    file: Path, out: Path, executor: str, command: str = "build", **environment: str
) -> subprocess.Popen:
    """`llaso data build instruct` with two workers, or its plan, in a process of its own."""
    words = [sys.executable, "-m", "llaso.cli", "data", command, "instruct", "--sources", str(file)]
    more = ["--executor", executor, "--workers", "2"] if command == "build" else []
    return subprocess.Popen(
        [*words, "--out", str(out), *more],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
