"""How fast the corpora are planned and built: rows a second, memory, speed-up of a second worker, bytes an hour.

`python -m benchmarks.data [--rows N]` plans N synthetic rows in a process of its own and reports its peak memory, then
builds spoken rows with one worker and with two from an empty clip store. That job lasts half a minute for one worker:
starting the workers counts little, as it does in earnest. Seconds are those of the clock; on a machine with other work
compare `cpu_seconds_at_work`, which says what two workers cost more than one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_scripts import plan
from dataset_scripts.build import build
from dataset_scripts.sources.base import Fact, Item, Recording, Source, Speech

WORDS = "amber basil cedar delta ember fjord grove heron ivory jetty koala lemon mango noble olive pearl".split()


def run(rows: int = 1_000_000, spoken: int = 3_000) -> dict[str, Any]:
    """Measure.

    Args:
        rows: rows to plan.
        spoken: rows to build.

    Returns:
        Rows a second, memory in MB and seconds, by name.
    """
    figures: dict[str, Any] = {}
    for count in (rows // 10, rows):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:  # a process of its own: its peak memory is the plan's
            figures[f"plan_{count}_rows"] = pool.apply(_plan, (count,))
    for workers in (1, 2):
        figures[f"build_{workers}_workers"] = _build(spoken, workers)
    one, two = figures["build_1_workers"]["seconds"], figures["build_2_workers"]["seconds"]
    figures["second_worker_share_of_ideal"] = round(one / two / 2, 3)
    return figures


def _items(root: Path, rows: int, speak: bool) -> Iterator[Item]:
    for n in range(rows):
        sentence = " ".join(WORDS[n >> shift & 15] for shift in (0, 4, 8, 12, 16))
        sound = Speech(sentence, "en-us+f1") if speak else Recording(f"/data/{n}.flac", 0.0, 5.0)
        yield Item(f"{n:08d}", (Fact("ASR", sentence),), (sound,), speaker="" if speak else f"s{n % 5000}")


def _source(rows: int, speak: bool) -> Source:
    return Source(
        name="synthetic", title="", license="", homepage="", tasks=("ASR",), layout="", needs=(),
        read=_items, options={"rows": rows, "speak": speak}, eval_share=0.0 if speak else 0.01,
    )  # fmt: skip


def _plan(rows: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = plan.make_plan(plan.Settings("align"), [_source(rows, False)], Path(folder) / "plan")
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": made["rows"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mb": round(after.ru_maxrss / 1024),
        "peak_mb_before": round(before.ru_maxrss / 1024),
    }


def _build(rows: int, workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = build("align", [_source(rows, True)], Path(folder) / "out", workers=workers, rows_per_shard=rows // 12)
        seconds = time.perf_counter() - start
        built = json.loads((out / "build.json").read_text())
        records = [json.loads((out / ".build" / "shards" / f"{name}.json").read_text()) for name in built["shards"]]
    return {
        "rows_per_second": round(built["rows"] / seconds, 1),
        "seconds": round(seconds, 2),
        "seconds_at_work": round(sum(record["seconds_to_build"] for record in records), 2),
        "cpu_seconds_at_work": round(sum(record["cpu_seconds_to_build"] for record in records), 2),
        "bytes_per_hour": round(built["bytes"] / built["hours"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to plan")
    parser.add_argument("--spoken", type=int, default=3_000, help="rows to build")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.rows, arguments.spoken), indent=1))
