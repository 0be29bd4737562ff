"""Measures every model at every task, each in its own process; prints a table and writes JSON.

`python -m benchmarks.model`, or `make bench`. The models take turns, round after round, and every figure is a ratio
within a round, with its spread: to our own model doing what the released code does, and to the fastest of
transformers' own peers; by the clock, and by processor time, which other work on the machine disturbs less. Ratios to
the released code's own figures stand beside them; those were measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import TASKS, run_apart
from benchmarks.subjects import PEERS, RELEASED_WAY, SIZES, SUBJECTS

QUOTED: dict[str, dict[str, float]] = {
    "stage-1 step": {"seconds": 33.4, "peak_gib": 12.9},
    "stage-2 step": {"seconds": 45.6, "peak_gib": 11.7},
    "first token": {"seconds": 1.77},
    "generation": {"seconds": 4 * 64 / 19.7, "peak_gib": 4.1},
}
"""The released code at these tasks, fp32, 2 threads, on another machine of two cores; this run did not measure it."""
COLUMNS = {
    "speed_to_released_way": "speed to the released way",
    "processor_to_released_way": "by processor time",
    "memory_to_released_way": "memory to it",
    "speed_to_best_peer": "speed to the fastest peer",
    "processor_to_best_peer": "by processor time",
    "speed_to_quoted": "speed to the released code elsewhere",
}
HEADER = (
    f"| task | model | tokens a row | s | GiB | {' | '.join(COLUMNS.values())} |\n" + "|---" * (5 + len(COLUMNS)) + "|"
)

Results = dict[str, dict[str, Any]]
"""Of every model at one task: `seconds`, `processor_seconds` and `peak_gib`, each a list over the rounds; `tokens`."""


def measure_rounds(task: str, subjects: Sequence[str], size: str, repeats: int, threads: int) -> Iterator[Results]:
    """Measure all models at one task in turn; every other round in reverse, so that drift favours none.

    Yields:
        What is measured so far, after every round.
    """
    results: Results = {name: {"seconds": [], "processor_seconds": [], "peak_gib": []} for name in subjects}
    for repeat in range(repeats):
        for name in subjects if repeat % 2 == 0 else reversed(subjects):
            measured = run_apart(name, task, size, threads)
            results[name]["seconds"].append(measured.seconds)
            results[name]["processor_seconds"].append(measured.processor_seconds)
            results[name]["peak_gib"].append(measured.peak_gib)
            results[name]["tokens"] = measured.tokens
        yield results


def ratios(references: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return how many times each round's reference is its value: median, least and most."""
    each = [reference / value for reference, value in zip(references, values, strict=True)]
    return {"median": median(each), "least": min(each), "most": max(each)}


def compare(task: str, results: Results, quoted: bool) -> Results:
    """Return the ratios of every model at one task, as far as what they refer to was measured.

    Args:
        task: the task.
        results: what was measured.
        quoted: whether the released code's figures are of this size.
    """
    kinds = {"speed": "seconds", "processor": "processor_seconds", "memory": "peak_gib"}
    compared: Results = {}
    for name, own in results.items():
        found = {}
        for kind, measure in kinds.items():
            peers = [results[peer][measure] for peer in PEERS if peer in results]
            if RELEASED_WAY in results:
                found[f"{kind}_to_released_way"] = ratios(results[RELEASED_WAY][measure], own[measure])
            if peers:
                found[f"{kind}_to_best_peer"] = ratios(min(peers, key=median), own[measure])
        if quoted:
            found["speed_to_quoted"] = ratios([QUOTED[task]["seconds"]] * len(own["seconds"]), own["seconds"])
        compared[name] = found
    return compared


def cell(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['median']:.2f}× ({ratio['least']:.2f}–{ratio['most']:.2f})"


def rows(task: str, results: Results, compared: Results) -> list[str]:
    """Return the task's part of the table."""
    lines = []
    for name, found in compared.items():
        own = results[name]
        lines.append(
            f"| {task} | {name} | {own['tokens']} | {median(own['seconds']):.2f} | {max(own['peak_gib']):.2f} | "
            + " | ".join(cell(found.get(kind)) for kind in COLUMNS)
            + " |"
        )
    return lines


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and the versions of this run."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = names[0].strip() if names else name
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": commit,
    }


def draw(report: dict[str, Any], out: Path) -> None:
    """Draw bars of speed and memory relative to the released code, a panel a task; whiskers from least to most."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = [task for task, found in report["ratios"].items() if "speed_to_released_way" in next(iter(found.values()))]
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    for panel, task in zip(panels.flat, tasks, strict=False):
        found = report["ratios"][task]
        names = list(found)[::-1]
        for offset, (kind, color) in enumerate(
            (("memory_to_released_way", "#9aa5b1"), ("speed_to_released_way", "#2b6cb0"))
        ):
            shown = [found[name][kind] for name in names]
            middle = [ratio["median"] for ratio in shown]
            panel.barh(
                [place + 0.4 * offset - 0.2 for place in range(len(names))],
                middle,
                0.38,
                xerr=[
                    [ratio["median"] - ratio["least"] for ratio in shown],
                    [ratio["most"] - ratio["median"] for ratio in shown],
                ],
                color=color,
                label=f"times {'as fast' if offset else 'less memory'}",
            )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(task)
        panel.set_xlabel("to the released way, in the same run")
    for panel in panels.flat[len(tasks) :]:
        panel.set_visible(False)
    panels.flat[0].legend(loc="lower right")
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="medium", help="tiny tries the command out")
    parser.add_argument(
        "--task", choices=TASKS, action="append", help="only this, beside what the folder holds; may be given again"
    )
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="only this; may be given again")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by the processes that measure
    arguments.out.mkdir(parents=True, exist_ok=True)

    path = arguments.out / "bench.json"
    report: dict[str, Any] = {"size": arguments.size, "quoted": QUOTED, "machine": {}, "results": {}, "ratios": {}}
    if arguments.task and path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["size"] != arguments.size:
            parser.error(f"{path} holds models of size {report['size']}; name another folder with --out")
    for task in arguments.task or TASKS:
        subjects = arguments.subject or list(SUBJECTS)
        report["machine"][task] = machine(arguments.threads)
        for results in measure_rounds(task, subjects, arguments.size, arguments.repeats, arguments.threads):
            compared = compare(task, results, quoted=arguments.size == "medium")
            report["results"][task], report["ratios"][task] = results, compared
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print("\n".join(rows(task, results, compared)), flush=True)
    table = [HEADER]
    for task in TASKS:
        if task in report["results"]:
            table += rows(task, report["results"][task], report["ratios"][task])
    (arguments.out / "bench.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    draw(report, arguments.out / "bench.png")
    print(f"{arguments.out}: bench.md, bench.json, bench.png")


if __name__ == "__main__":
    main()
