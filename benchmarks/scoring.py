"""Measures how long scoring a folder of answers takes, under each protocol, with and without intervals.

    python benchmarks/scoring.py FOLDER [--repeats 3]

Prints the best wall and processor time of each, after one run that imports and fills nothing but Python's modules.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from eval_suite import parsing, phonemes, text_normalization
from eval_suite.score import score


def forget() -> None:
    """Clear what scoring caches between runs, so that every run does all the work."""
    for remembered in (
        text_normalization.whisper_english,
        text_normalization._normalize_run,
        parsing.find_cached,
        phonemes.ipa_symbols,
    ):
        remembered.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="released files or our own predictions")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    score(arguments.folder, intervals=False)
    for protocol in ("strict", "paper"):
        for intervals in (True, False):
            best = (float("inf"), float("inf"))
            for _ in range(arguments.repeats):
                forget()
                wall, processor = time.perf_counter(), time.process_time()
                scores = score(arguments.folder, protocol=protocol, intervals=intervals)
                best = min(best, (time.perf_counter() - wall, time.process_time() - processor))
            label = "with intervals" if intervals else "without"
            print(
                f"{protocol:<7}{label:<15} {len(scores['files'])} files, {scores['n']} rows: "
                f"{best[0]:.1f} s, {best[1]:.1f} s of processor time"
            )


if __name__ == "__main__":
    main()
