"""`make bench`: every model at every task, each in its own process; a table and a JSON file from one run.

Every figure is a ratio with its spread (median, least and most over the repeats): against the released code's time
and memory at the same task, and against the fastest of transformers' own peers in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

SUBJECTS = (
    "LLaSO full",
    "LLaSO trim",
    "LLaSO full, 4 to 1",
    "LLaSO trim, 4 to 1",
    "AudioFlamingo3",
    "GLM-ASR",
    "Voxtral",
)
PEERS = SUBJECTS[4:]
TASKS = ("stage-1 step", "stage-2 step", "prefill", "generation")

RELEASED = {
    "stage-1 step": {"seconds": 33.4, "peak_gib": 12.9},
    "stage-2 step": {"seconds": 45.6, "peak_gib": 11.7},
    "prefill": {"seconds": 1.77, "peak_gib": None},
    "generation": {"seconds": 4 * 64 / 19.7, "peak_gib": 4.1},
}
"""The released code at these tasks, fp32, 2 threads, on a machine of two cores: measured once, elsewhere, and not by
this run. Ratios against it hold on such a machine only."""


def measure(subject: str, task: str, repeats: int, threads: int) -> dict:
    """One subject at one task, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.measure", "--subject", subject, "--task", task]
    command += ["--repeats", str(repeats), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise SystemExit(f"{subject}, {task}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ratio(reference: float, seconds: list[float]) -> str:
    """How many times as fast as the reference: median, with the least and the most."""
    return f"{reference / median(seconds):.2f}× ({reference / max(seconds):.2f}–{reference / min(seconds):.2f})"


def line(subject: str, task: str, results: dict[str, dict]) -> str:
    """A row of the table."""
    own, released = results[subject], RELEASED[task]
    peers = [median(results[peer]["seconds"]) for peer in PEERS if peer in results]
    memory = f"{released['peak_gib'] / own['peak_gib']:.1f}×" if released["peak_gib"] else "–"
    against_peers = ratio(min(peers), own["seconds"]) if peers else "–"
    return (
        f"| {task} | {subject} | {own['tokens']} | {median(own['seconds']):.2f} | {own['peak_gib']:.2f} | "
        f"{ratio(released['seconds'], own['seconds'])} | {memory} | {against_peers} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, action="append", help="only this; may be given again")
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="only this; may be given again")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    table = [
        "| task | model | tokens a row | s | GiB | speed to the released code | memory | speed to the fastest peer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table))
    report: dict = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": arguments.threads},
        "load_before": os.getloadavg()[0],
        "released": RELEASED,
        "results": {},
    }
    for task in arguments.task or TASKS:
        results = {}
        for subject in arguments.subject or SUBJECTS:
            results[subject] = measure(subject, task, arguments.repeats, arguments.threads)
        rows = [line(subject, task, results) for subject in results]
        print("\n".join(rows), flush=True)
        table += rows
        report["results"][task] = results
        (arguments.out / "bench.md").write_text("\n".join(table) + "\n")
        (arguments.out / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{arguments.out / 'bench.md'} and {arguments.out / 'bench.json'}; load before: {report['load_before']:.1f}")


if __name__ == "__main__":
    main()
