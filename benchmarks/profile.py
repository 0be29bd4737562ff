"""Profiles one model at one task: torch.profiler's operators, the most costly first.

`python -m benchmarks.profile --subject "LLaSO trim" --task generation`
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.measure import TASKS, prepared
from benchmarks.subjects import SIZES, SUBJECTS


def shares(subject: str, task: str, size: str) -> list[tuple[str, int, float]]:
    """Return of every operator its name, its calls and its share of the processor's time."""
    work, batch = prepared(subject, task, size)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work(batch)
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return [(event.key, event.count, event.self_cpu_time_total / total) for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8, help="operators to show (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| operator | calls | share |\n|---|---|---|")
    for name, calls, share in shares(arguments.subject, arguments.task, arguments.size)[: arguments.rows]:
        print(f"| `{name}` | {calls} | {share:.1%} |")


if __name__ == "__main__":
    main()
