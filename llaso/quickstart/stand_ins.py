"""Trains the stand-ins for the pretrained parts: a small encoder and a small language model, side by side."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
from pathlib import Path
from typing import Any

from llaso.progress import Report
from llaso_common.atomic_write import write_atomically
from llaso_common.end_with_parent import end_with_parent

from .options import Size

AMERICAN = "en-us"
"""The accent that a person's recordings are spelled out in."""


def train_stand_ins(out: Path, size: Size, seed: int, report: Report) -> None:
    """Train the small encoder and language model side by side, on half the cores each.

    Args:
        out: folder of the quickstart, whose corpora are built.
        size: how long to train.
        seed: of every draw.
        report: takes progress lines.
    """
    report("no pretrained weights are fetched: a small Whisper encoder and a small Llama are trained from")
    report("scratch in their place. This step only replaces a download (--encoder ID --llm ID skips it).")
    spelled = out / "backbones" / "phonemes.json"
    if not spelled.exists():
        _spell_transcripts(out, spelled)
    spawn = multiprocessing.get_context("spawn")
    reports = spawn.Queue()
    jobs = [
        spawn.Process(target=work, args=(out, size, seed, reports), daemon=True)
        for work in (_train_encoder, _train_language_model)
    ]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs) or not reports.empty():
        with contextlib.suppress(queue.Empty):
            report(reports.get(timeout=1.0))
        if any(job.exitcode for job in jobs):
            for job in jobs:
                job.terminate()
            break
    if any(job.exitcode for job in jobs):
        raise RuntimeError("training a stand-in failed; its traceback is above")


def _spell_transcripts(out: Path, file: Path) -> None:
    """Write the phonemes of Align's training transcripts, each in the accent of its voice."""
    from dataset_scripts import synthesize

    rows = rows_of(out / "llaso-align", "train", ("id", "target", "voice"))
    spelled = {row["id"]: synthesize.phonemes(row["target"], row["voice"] or AMERICAN) for row in rows}
    write_atomically(file, json.dumps(spelled, ensure_ascii=False))


def _train_encoder(out: Path, size: Size, seed: int, reports: Any) -> None:
    """Train the small encoder on Align's recordings and the notes of Instruct."""
    import torch

    from llaso_common.audio import read_audio

    from . import small_backbones

    end_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    spelled = json.loads((out / "backbones" / "phonemes.json").read_text())
    rows = rows_of(out / "llaso-align", "train")
    heard = [(row, small_backbones.split_phonemes(spelled[row["id"]])) for row in rows]
    notes = {row["sha256"]: row for row in rows_of(out / "llaso-instruct", "train") if row["task"] in ("PP", "IC")}
    heard += [(row, ()) for row in notes.values()]
    clips = [
        small_backbones.HeardClip(read_audio(row["audio"][0]["bytes"], name=row["id"]), sounds)
        for row, sounds in heard
    ]
    schedule = small_backbones.encoder_schedule(size.encoder_steps)
    small_backbones.train_encoder(clips, out / "backbones" / "encoder", reports.put, seed=seed, schedule=schedule)


def _train_language_model(out: Path, size: Size, seed: int, reports: Any) -> None:
    """Train the small language model on text: Align's transcripts in phonemes, and the words of Instruct."""
    import torch

    from . import small_backbones

    end_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    spelled = json.loads((out / "backbones" / "phonemes.json").read_text())
    lines = [
        small_backbones.Line(_written(row), row["target"], small_backbones.split_phonemes(spelled[row["id"]]))
        for row in rows_of(out / "llaso-align", "train", ("id", "messages", "target"))
    ]
    instructions = [
        text
        for row in rows_of(out / "llaso-instruct", "train", ("messages", "target"))
        for text in (_written(row), row["target"])
    ]
    schedule = small_backbones.llm_schedule(size.llm_steps)
    small_backbones.train_language_model(
        lines, instructions, out / "backbones" / "llm", reports.put, seed=seed, schedule=schedule
    )


def _written(row: dict[str, Any]) -> str:
    """Return the text of a row's first message."""
    return " ".join(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def rows_of(corpus: Path, split: str, columns: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a split, in the order of the files."""
    import pyarrow.parquet as parquet

    files = sorted(corpus.glob(f"data/*/{split}-*.parquet"))
    names = list(columns) if columns else None
    return [row for file in files for row in parquet.read_table(file, columns=names).to_pylist()]
