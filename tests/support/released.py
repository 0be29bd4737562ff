"""The released answers, read and measured once a process, for the tests that hold scoring to published figures."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from eval_suite import readers
from eval_suite.score import ScoredFile, measure, read_rows
from support.paths import shared_fixture

SYSTEMS = ("LLaSO-Base", "LLaSO-Base_encoder_true", "Kimi-Audio", "Qwen2-Audio", "Typhoon-Audio", "Mini-Omni")
"""The systems whose values stand in `per_file.json`."""
ABLATION = "LLaSO-Base_encoder_true"
WITHOUT_ASR = ("Audio-Reasoner", "GLM-4-Voice", "Llama-Omni", "Mini-Omni", "Mini-Omni2")
"""The systems whose answers were released without the file of speech recognition."""
ALL_SYSTEMS = tuple(sorted({*SYSTEMS, *WITHOUT_ASR, "Salmonn"}))
PANEL_SYSTEMS = tuple(system for system in ALL_SYSTEMS if system != ABLATION)


@cache
def golden(name: str) -> dict[str, Any]:
    """Return a golden file."""
    return json.loads((shared_fixture("golden") / f"{name}.json").read_text(encoding="utf-8"))


@cache
def answers(system: str) -> readers.SystemAnswers:
    """Return the answers of one system."""
    return readers.read(shared_fixture("official_outputs") / system)


class Table:
    """One file as it was scored, for tests that look at its rows and metrics."""

    def __init__(self, scored: ScoredFile):
        self.scored = scored
        self.rows = len(scored.rows)
        self.outcomes = [one.reading.outcome for one in scored.rows]
        self.parsed = [one.reading.parsed for one in scored.rows]
        self.row_scores = np.array([np.nan if one.score is None else one.score for one in scored.rows])
        self.metrics = scored.metrics.statistics

    def values(self) -> dict[str, float]:
        return self.scored.metrics.values()


def table(rows: list[readers.AnsweredRow], protocol: str) -> Table:
    """Measure rows of one file."""
    return Table(measure({"file": read_rows(rows, protocol)}, protocol)["file"])


@cache
def strict_table(system: str, file: str) -> Table:
    """Return one file measured under strict."""
    return table(answers(system).files[file], "strict")


@cache
def paper_table(system: str, file: str) -> Table:
    """Return one file measured under paper."""
    return table(answers(system).files[file], "paper")
