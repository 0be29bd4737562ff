"""Measures the share of padding tokens by how rows are batched: `python -m benchmarks.padding`.

Lengths are drawn like those of a corpus of read sentences and short commands, with a prompt before each; `--data`
takes those of a corpus instead. Only lengths are read, no audio.
"""

from __future__ import annotations

import argparse

import numpy as np

from llaso.training.rows.batch_plan import BatchRule, Plan, RowGroups, padding_share

ROWS, TOKENS_PER_SECOND = 10_000, 50
ROW_GROUP = 100
"""Rows of a row group, as `llaso data build` writes them."""
RULES = {
    "8 rows, at random": BatchRule(per_device=8, group_by_length=False, parallel=4),
    "8 rows, by length": BatchRule(per_device=8, parallel=4),
    "4000 tokens, by length": BatchRule(per_device=64, max_tokens=4000, parallel=4),
}


def realistic_seconds(random: np.random.Generator, rows: int) -> np.ndarray:
    """Draw lengths of audio, `(rows,)`: 60 % sentences as long as LibriSpeech's, 40 % commands (lognormal)."""
    sentences = round(0.6 * rows)
    drawn = [random.lognormal(2.3, 0.55, sentences), random.lognormal(0.3, 0.4, rows - sentences)]
    return np.concatenate(drawn).clip(0.5, 30)


def realistic_lengths(rows: int = ROWS) -> list[int]:
    """Draw tokens of rows: those of realistic audio, and 60 to 140 of text."""
    random = np.random.default_rng(0)
    seconds = realistic_seconds(random, rows)
    return (seconds * TOKENS_PER_SECOND + random.integers(60, 140, rows)).astype(int).tolist()


def shares(lengths: list[int], seed: int = 0) -> dict[str, float]:
    """Return the padding share of one epoch under each rule."""
    groups = RowGroups(np.array(lengths), np.append(np.arange(0, len(lengths), ROW_GROUP), len(lengths)))
    plans = {name: Plan(groups, rule, seed) for name, rule in RULES.items()}
    return {name: padding_share(plan.epoch(0), groups.lengths, plan.rule) for name, plan in plans.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a corpus folder or Hub id, in place of drawn lengths")
    arguments = parser.parse_args()
    lengths = realistic_lengths()
    if arguments.data:
        from llaso.training.recipe.recipe import DataChoice
        from llaso.training.rows.corpora import open_corpus

        lengths = open_corpus(DataChoice(path=arguments.data)).lengths.tolist()
    print(f"{len(lengths):,} rows of {min(lengths)} to {max(lengths)} tokens, {np.mean(lengths):.0f} in the mean\n")
    print("| micro-batch | padding |\n|---|---|")
    for name, share in shares(lengths).items():
        print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
