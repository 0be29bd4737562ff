"""Measures the planning and building of corpora: rows a second, memory, speed-up of a second worker, bytes an hour.

`python -m benchmarks data` plans a tenth of the rows and then all of them, each in a process of its own whose peak
memory is the plan's; then one worker and two take turns at building spoken rows from an empty clip store, several
rounds, so that other work on the machine disturbs both alike. Prints tables for `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.spread import spread
from dataset_scripts import corpus_plan
from dataset_scripts.build import build
from dataset_scripts.sources.base import Fact, Item, Source, Speech

WORDS = "amber basil cedar delta ember fjord grove heron ivory jetty koala lemon mango noble olive pearl".split()


@dataclass(frozen=True)
class Planned:
    """Holds the cost of planning: rows, seconds, and MB of memory before it began and at its peak."""

    rows: int
    seconds: float
    before_mb: float
    peak_mb: float


@dataclass(frozen=True)
class Built:
    """Holds the cost of building: rows, elapsed and processor seconds, bytes and hours of audio."""

    rows: int
    seconds: float
    cpu_seconds: float
    bytes: int
    hours: float


def _items(root: Path, rows: int, held_out: float) -> Iterator[Item]:
    """Return sentences of five words, each with a transcript; a part of them held out."""
    for n in range(rows):
        sentence = " ".join(WORDS[n >> shift & 15] for shift in (0, 4, 8, 12, 16))
        split = "test" if n % 1000 < 1000 * held_out else "train"
        yield Item(f"{n:08d}", (Fact("ASR", sentence),), (Speech(sentence),), sentence=f"{n}", split=split)


def _source(rows: int, held_out: float) -> Source:
    return Source(
        name="synthetic", title="", license="CC0-1.0", homepage="", tasks=("ASR",), layout="", needs=(), read=_items,
        options={"rows": rows, "held_out": held_out},
    )  # fmt: skip


def planned(rows: int) -> Planned:
    """Plan so many rows in this process, a twentieth of them for evaluation."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        corpus_plan.make_plan(corpus_plan.Settings("align"), [_source(rows, 0.05)], Path(folder) / "plan")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Planned(rows, seconds, before / 1024, peak / 1024)


def built(rows: int, workers: int) -> Built:
    """Build so many spoken rows from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = build("align", [_source(rows, 0.0)], Path(folder) / "out", workers=workers, rows_per_shard=rows // 16)
        seconds = time.perf_counter() - start
        summary = json.loads((out / "build.json").read_text())
        records = [json.loads((out / ".build" / "shards" / f"{name}.json").read_text()) for name in summary["shards"]]
    cpu = sum(record["cpu_seconds_to_build"] for record in records)
    return Built(summary["rows"], seconds, cpu, summary["bytes"], summary["hours"])


def tables(plans: Sequence[Planned], rounds: Sequence[tuple[Built, Built]]) -> str:
    """Return the figures as Markdown: medians over the rounds, least and most in brackets."""
    lines = ["| rows planned | seconds | rows a second | MB before | MB at the peak |", "|---|---|---|---|---|"]
    for part in plans:
        speed = part.rows / part.seconds
        lines.append(
            f"| {part.rows:,} | {part.seconds:.1f} | {speed:,.0f} | {part.before_mb:.0f} | {part.peak_mb:.0f} |"
        )
    lines += ["", "| workers | rows a second | processor ms a row | MB an hour of audio |", "|---|---|---|---|"]
    for number, runs in enumerate(zip(*rounds, strict=True), start=1):
        speed = spread([run.rows / run.seconds for run in runs], ".1f")
        cpu = spread([1000 * run.cpu_seconds / run.rows for run in runs], ".1f")
        size = spread([run.bytes / run.hours / 1e6 for run in runs], ".1f")
        lines.append(f"| {number} | {speed} | {cpu} | {size} |")
    gains = spread([one.seconds / two.seconds for one, two in rounds], ".2f")
    share = spread([one.seconds / two.seconds / 2 for one, two in rounds], ".2f")
    lines += ["", f"Two workers are {gains} times as fast as one: {share} of ideal."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to plan (default 1,000,000)")
    parser.add_argument("--spoken", type=int, default=3_000, help="rows to build in each run (default 3,000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each number of workers (default 3)")
    arguments = parser.parse_args()
    if min(arguments.rows, arguments.spoken) < 100 or arguments.rounds < 1:
        parser.error("--rows and --spoken must be 100 or more, --rounds 1 or more")
    plans = []
    for rows in (arguments.rows // 10, arguments.rows):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            plans.append(pool.apply(planned, (rows,)))
    rounds = []
    for turn in range(arguments.rounds):
        pair = {workers: built(arguments.spoken, workers) for workers in ((1, 2) if turn % 2 == 0 else (2, 1))}
        rounds.append((pair[1], pair[2]))
    print(tables(plans, rounds))


if __name__ == "__main__":
    main()
