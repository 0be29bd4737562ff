"""Runs the building of shards by datatrove's executors, on this machine, a Slurm cluster or Ray.

Tried, with the same bytes each time: four processes here; Slurm's array jobs, through a stand-in for `sbatch`; and Ray
2.60 on two nodes of one machine, both at work at once. Seen: Slurm's executor returns as soon as the jobs are handed
in; Ray's starts an actor for every shard and keeps a shard's error to that shard's log.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path
from typing import Any

from llaso_common.end_with_parent import end_with_parent

NAMES = ("local", "slurm", "ray")
OURS = {"pipeline", "tasks", "workers", "logging_dir", "depends", "skip_completed"}
"""Arguments of datatrove's executors that the build itself decides."""


def check(executor: str, workers: int, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the executor exists, is installed, and has the options it needs and no others."""
    if executor not in NAMES:
        raise ValueError(f"no executor {executor!r}; there are {', '.join(NAMES)}")
    if workers < 1 and not (workers == -1 and executor != "local"):
        raise ValueError(f"{workers} workers: give one or more (slurm and ray also take -1, for no limit)")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError("the ray executor needs Ray: pip install 'llaso[ray]'")
    if importlib.util.find_spec("datatrove") is None:
        raise ValueError(f"the {executor} executor is not installed: pip install 'llaso[data]'")
    if not options and executor != "slurm":
        return  # nothing to look up, and datatrove takes a while to load
    from datatrove import executor as executors

    accepted = inspect.signature(getattr(executors, f"{executor.capitalize()}PipelineExecutor")).parameters
    if unknown := sorted(set(options) - (set(accepted) - OURS)):
        known = ", ".join(sorted(set(accepted) - OURS))
        raise ValueError(f"{executor}: cannot be told {', '.join(unknown)} in the sources file; there are {known}")
    if executor == "slurm" and (absent := sorted({"partition", "time"} - set(options))):
        raise ValueError(f"slurm: say {' and '.join(absent)} under `slurm:` in the sources file")


def queued(logs: Path) -> list[str]:
    """Return the build's Slurm jobs that wait or run, without those that can never start.

    Raises:
        ValueError: there is no Slurm here.
        OSError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--name", _job_name(logs), "--format", "%A %r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise ValueError("slurm: no `squeue` here; give the command on a machine that submits jobs") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"slurm: squeue failed: {error.stderr.strip()}") from error
    jobs = (line.split(maxsplit=1) for line in listed.splitlines() if line.strip())
    return sorted({id for id, *reason in jobs if "DependencyNeverSatisfied" not in reason})


def _job_name(logs: Path) -> str:
    """Return the name of a build's jobs in Slurm's queue: one for each folder."""
    return f"llaso-{sha256(str(logs).encode()).hexdigest()[:12]}"


def run(
    job: Callable[..., None], tasks: int, executor: str, workers: int, logs: Path, options: Mapping[str, Any]
) -> None:
    """Run `job(data, rank, world_size)` for every rank.

    Args:
        job: what to run; it is pickled for the workers, and returns at once if its work is done already.
        tasks: number of ranks.
        executor: local (processes on this machine), slurm (submitted; returns at once) or ray.
        workers: how many ranks at a time; -1 for no limit (slurm, ray).
        logs: folder of datatrove's logs and completion marks.
        options: further arguments of the datatrove executor. Slurm's jobs get a name of their own in any case.

    Raises:
        ValueError: see `check`.
    """
    check(executor, workers, options)
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    from datatrove.utils.logging import logger as datatrove_logger

    class Local(LocalPipelineExecutor):
        """Runs ranks on this machine; a lost worker is an error (datatrove's pool would wait for ever)."""

        def run(self) -> None:
            ranks = self.get_incomplete_ranks(range(self.tasks))
            if self.workers == 1:
                for rank in ranks:
                    self._run_for_rank(rank)
            else:
                _run_in_pool(self, ranks, self.workers, preload=type(job).__module__)

        def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
            return super()._run_for_rank(rank, local_rank + 1, node_rank)  # rank 0 would log to the terminal

    common: dict[str, Any] = {"pipeline": [job], "tasks": tasks, "logging_dir": str(logs), **options}
    datatrove_logger.disable("datatrove")
    try:
        if executor == "local":
            Local(**common, workers=min(workers, tasks)).run()
        elif executor == "ray":
            RayPipelineExecutor(**common, workers=workers).run()
        else:
            SlurmPipelineExecutor(**{**common, "job_name": _job_name(logs)}, workers=workers).run()
    finally:
        datatrove_logger.enable("datatrove")


def _run_in_pool(executor: Any, ranks: Sequence[int], workers: int, preload: str) -> None:
    """Run ranks in processes that are forked from a server that has imported everything once.

    Raises:
        OSError: a process was lost, e.g. killed for want of memory.
    """
    import dill

    multiprocessing.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("forkserver"), initializer=_begin, initargs=(dill.dumps(executor),)
    )
    try:
        for done in as_completed([pool.submit(_run_rank, rank) for rank in ranks]):
            done.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was lost, perhaps for want of memory; the same command goes on from the shards that "
            "are whole, and fewer --workers need less"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pickled: bytes) -> None:
    """Set up a worker: take the executor, and end when the build's own process ends."""
    import dill
    from datatrove.utils.logging import logger

    global _executor
    _executor = dill.loads(pickled)
    logger.disable("datatrove")  # errors are reported by the build's own process
    end_with_parent()


def _run_rank(rank: int) -> None:
    _executor._run_for_rank(rank)


_executor: Any = None
"""In a worker: what it runs ranks of, with everything it has loaded."""
