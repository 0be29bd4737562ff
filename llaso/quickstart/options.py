"""The options of a quickstart, and the amounts of each size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "quickstart.json"
"""The file in which a quickstart's folder records its options and finished stages."""


@dataclass(frozen=True)
class Options:
    """Options of a quickstart; they stay the same for all runs in a folder.

    Args:
        speech: real recordings: a sources file, a folder laid out like the Free Spoken Digit Dataset, or any manifest,
            folder or data set that `llaso data sources --inspect` reads; "" for none.
        encoder, llm: Hub ids or folders of real backbones; "" for the stand-ins.
        seed: of every draw.
        size: "standard", "real" for people's speech with real backbones, or "minimum", which only shows in a minute
            or two that every stage works.
        synthetic: whether the small synthetic world is among the corpora; if not, they are made of `speech` alone.
    """

    speech: str = ""
    encoder: str = ""
    llm: str = ""
    seed: int = 0
    size: str = "standard"
    synthetic: bool = True

    def __post_init__(self) -> None:
        if bool(self.encoder) != bool(self.llm):
            raise ValueError("--encoder and --llm go together: a stand-in does not fit a real backbone")
        if self.size not in SIZES:
            raise ValueError(f"no size {self.size!r}; there are {', '.join(SIZES)}")
        if not (self.synthetic or self.speech):
            raise ValueError("without the synthetic world there has to be speech: name it with --speech")

    @property
    def recipes(self) -> tuple[str, str]:
        """The recipes of the two stages: rates meant for stand-ins of 2 M parameters would ruin a pretrained LLM."""
        return ("small_stage1", "small_stage2") if self.encoder else ("quickstart_stage1", "quickstart_stage2")

    @classmethod
    def of_folder(cls, folder: Path) -> Options:
        """Return the options that a quickstart's folder records; the default ones if it has no record.

        Raises:
            ValueError: the record cannot be read.
        """
        record = folder / RECORD
        if not record.exists():
            return cls()
        try:
            return cls(**cls.recorded(json.loads(record.read_text(encoding="utf-8"))["options"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{record} is not what this version of `llaso quickstart` or `llaso real` writes ({error}); "
                "name another folder, or run that command anew"
            ) from error

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return recorded options with those that a record of an earlier version does not name."""
        return {"synthetic": True, **record}


@dataclass(frozen=True)
class Size:
    """The amounts of one size.

    Args:
        utterances, notes, questions: items of the synthetic source.
        eval_rows, validation_rows: rows held out.
        encoder_steps, llm_steps: of the stand-ins.
        overrides: of both training recipes.
        answer_tokens: of an answer of the evaluation at most.
    """

    utterances: int
    notes: int
    questions: int
    eval_rows: int
    validation_rows: int
    encoder_steps: int
    llm_steps: int
    overrides: tuple[str, ...] = ()
    answer_tokens: int = 64


SIZES = {
    "standard": Size(
        utterances=6000,
        notes=700,
        questions=1500,
        eval_rows=1400,
        validation_rows=600,
        encoder_steps=2600,
        llm_steps=2200,
    ),
    "real": Size(
        utterances=6000,
        notes=700,
        questions=1500,
        eval_rows=800,
        validation_rows=240,
        encoder_steps=0,
        llm_steps=0,
        answer_tokens=128,
    ),
    "minimum": Size(
        utterances=160,
        notes=24,
        questions=90,
        eval_rows=80,
        validation_rows=12,
        encoder_steps=12,
        llm_steps=12,
        overrides=(
            "optimizer.max_steps=6",
            "watch.evaluate_rows=4",
            "watch.final_rows=8",
            "watch.save_every=3",
            "compute.compile=false",
        ),
    ),
}
