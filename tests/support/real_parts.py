"""Where real pretrained parts lie: a Whisper and a chat model, named by a variable or beside the checkout.

`LLASO_REAL_PARTS` names a folder with two folders in it, of transformers' own form: a Whisper, and a causal language
model with its tokenizer. Without it, `../real` beside the checkout is looked into. Neither is part of the project.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llaso_common.audio import read_audio

from .paths import ROOT, SHARED
from .tiny_llaso import RATE, tone

VARIABLE = "LLASO_REAL_PARTS"
SPEECH = SHARED / "fixtures" / "real_speech"
"""People's speech with transcripts, if it lies beside the checkout."""


@dataclass(frozen=True)
class RealParts:
    """The folders of a Whisper and of a causal language model."""

    encoder: Path
    llm: Path


def real_parts() -> RealParts:
    """Return the real parts; skip the test, with the reason, if there are none.

    Raises:
        ValueError: the variable names a folder without them; a wrong path must not look like a passed test.
    """
    named = os.environ.get(VARIABLE, "")
    folder = Path(named).expanduser() if named else ROOT.parent / "real"
    found: dict[str, Path] = {}
    for config in sorted(folder.glob("*/config.json")):
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        found.setdefault("encoder" if kind == "whisper" else "llm", config.parent)
    if found.keys() == {"encoder", "llm"}:
        return RealParts(**found)
    if named:
        raise ValueError(f"{VARIABLE}={named}: no Whisper and language model as folders in it")
    pytest.skip(f"no real pretrained parts: {VARIABLE} is not set, and {folder} has no Whisper and language model")


def clips(count: int = 3) -> list[np.ndarray]:
    """Return clips of different lengths, mono at 16 kHz: people's speech if it is beside the checkout, else tones."""
    if not SPEECH.is_dir():
        return [tone(1.0 + 0.7 * number, 180.0 + 60 * number, seed=number) for number in range(count)]
    rows = [json.loads(line) for line in (SPEECH / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    step = len(rows) // count
    return [read_audio(SPEECH / row["audio"], RATE)[: 8 * RATE] for row in rows[::step][:count]]
