"""Commands that reach models through the Auto classes, each in a process of its own, as a user's shell runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
from support.tiny_eval import save_llaso

SOURCES = "sources:\n  notes: {folder: notes, license: CC0-1.0}\nrows_per_shard: 16\n"


def llaso(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llaso.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_building_counts_a_models_tokens_and_generating_opens_it(tmp_path: Path):
    save_llaso(tmp_path / "model")
    draw = np.random.default_rng(0)
    for n in range(8):
        folder = tmp_path / "notes" / f"speaker{n}"
        folder.mkdir(parents=True)
        soundfile.write(folder / "note.wav", draw.uniform(-0.3, 0.3, 8_000), 16_000)
        (folder / "note.txt").write_text(f"note number {n}")
    (tmp_path / "sources.yaml").write_text(SOURCES)
    corpus = tmp_path / "corpus"
    processor = ("--processor", tmp_path / "model")
    llaso("data", "build", "align", "--sources", tmp_path / "sources.yaml", *processor, "--out", corpus)
    rows = [row for file in sorted(corpus.glob("data/**/*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert rows and all(row["length"] > 0 for row in rows)
    answers = tmp_path / "answers"
    llaso(
        "eval", "generate", "--model", tmp_path / "model", "--data", corpus, "--split", "train",
        "--max-new-tokens", 2, "--out", answers,
    )  # fmt: skip
    assert len([line for file in answers.glob("*.jsonl") for line in file.read_text().splitlines()]) > 0
