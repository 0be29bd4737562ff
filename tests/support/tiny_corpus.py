"""A small source made by the tests: tones, notes and questions, cheap to build and in all three formats."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from dataset_scripts.sources.base import Fact, Item, Note, Recording, Reject, Source

VOICES = {"train": ["en-us+f1", "en+m1"], "validation": ["en-us+f2"], "test": ["en+f4"]}
GENDERS = ("female", "male")
DYING = """
import os, signal, sys
from pathlib import Path
calls = 0
def dying(original, after):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    return call
"""
"""For a script: `dying(function, after)` is a function whose process is killed at the call after so many."""


def read(root: Path, recordings: int = 40, notes: int = 30, questions: int = 10) -> Iterator[Item | Reject]:
    """Yield recordings of twenty speakers with a gender each, notes, and questions to be spoken."""
    for n in range(recordings):
        yield Item(
            f"rec-{n:03d}",
            (Fact("ASR", f"sentence number {n}"), Fact("SGC", GENDERS[n % 20 % 2], GENDERS)),
            (Recording(str(root / f"{n:03d}.wav")),),
            speaker=f"s{n % 20}",
            sentence=f"Sentence, number {n}!",
        )
    for n in range(notes):
        yield Item(f"note-{n:03d}", (Fact("PP", str(40 + n)),), (Note("organ", 40 + n, 75, 0.2),))
    for n in range(questions):
        yield Item(f"qa-{n:03d}", (Fact("AQA", str(n), instruction="Add", input=f"{n}"),), sentence=f"add {n}")


SOURCE = Source(
    name="tiny",
    title="Tiny",
    license="CC0-1.0",
    homepage="https://example.org",
    tasks=("ASR", "SGC", "PP", "AQA"),
    layout="{number}.wav",
    needs=("*.wav",),
    read=read,
    eval_share=0.2,
)


def write_recordings(root: Path, count: int = 40) -> Path:
    """Write the recordings of the tiny source: tones of different pitch at 8 kHz."""
    root.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        soundfile.write(root / f"{n:03d}.wav", 0.3 * np.sin(np.arange(1600) * (0.05 + 0.01 * n)), 8_000)
    return root


def write_public_corpora(root: Path, takes: int = 3) -> Path:
    """Write miniature trees of two public corpora (spoken digits, Dolly) and a sources file that names them."""
    digits, dolly = root / "fsdd", root / "dolly"
    (digits / "recordings").mkdir(parents=True)
    dolly.mkdir()
    speakers = ("ann", "bob", "cid", "dan")
    for s, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                tone = 0.3 * np.sin(np.arange(2400) * (0.05 + 0.01 * digit + 0.002 * take + 0.0005 * s))
                soundfile.write(digits / "recordings" / f"{digit}_{speaker}_{take}.wav", tone, 8_000)
    (digits / "speakers.json").write_text(json.dumps({s: {"gender": "male", "accent": "X"} for s in speakers}))
    asked = ({"instruction": f"Say {n}", "context": f"the number {n}", "response": f"{n}"} for n in range(12))
    (dolly / "databricks-dolly-15k.jsonl").write_text("\n".join(map(json.dumps, asked)))
    file = root / "sources.yaml"
    file.write_text("sources: {fsdd: fsdd, dolly: dolly}\nrows_per_shard: 8\neval_rows: 20\nvalidation_rows: 4\n")
    return file


@contextlib.contextmanager
def held_up(file: Path, *lines: str) -> Iterator[None]:
    """Give the reader of the file some lines, and then nothing more, for ever."""
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    pipe = os.open(file, os.O_RDWR)
    try:
        os.write(pipe, "".join(lines).encode())
        yield
    finally:
        os.close(pipe)
        file.unlink()
        file.write_bytes(content)
