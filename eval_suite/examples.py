"""Chooses single rows for the report: the worst answers of every task and some at random, with their audio.

Clips are cut short and re-encoded as MP3, and stop altogether when a budget of bytes is spent, so that the page stays
one file of moderate size. The draw depends on the seed and the rows alone.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from llaso_common.audio import SAMPLE_RATE, read_audio

from .corpus import EvalCorpus, digest
from .scored_rows import Scored, ScoredRow

logger = logging.getLogger(__name__)

CLIP_SECONDS = 20.0
AUDIO_BYTES = 8_000_000


def choose_examples(
    scored: Scored, tasks: Mapping[str, Mapping[str, Any]], *, worst: int = 2, drawn: int = 2, seed: int = 0
) -> list[dict[str, Any]]:
    """Pick rows of one system.

    Args:
        scored: the system's rows, as they were read when it was scored.
        tasks: task -> its entry in the report: `direction` of the ranking metric, and the value `perfect`.
        worst: rows a task with the worst score of their own; none that is perfect.
        drawn: rows a task picked at random.
        seed: of the draw.

    Returns:
        One entry a row: why it was picked, what was asked, answered, read and expected.
    """
    by_task: dict[str, list[ScoredRow]] = {}
    for rows in scored.rows.values():
        for one in rows:
            by_task.setdefault(one.row.task, []).append(one)
    chosen = []
    for task, rows in by_task.items():
        if task not in tasks:
            continue

        def badness(one: ScoredRow, task: str = task) -> float:
            if one.score is None or one.score == tasks[task].get("perfect"):
                return -math.inf
            return one.score if tasks[task].get("direction") == "lower" else -one.score

        shuffled = sorted(rows, key=lambda one: digest(seed, one.row.file, one.row.id))
        bad = [one for one in sorted(shuffled, key=badness, reverse=True) if badness(one) > -math.inf][:worst]
        others = [one for one in shuffled if one not in bad][:drawn]
        chosen += [_example(scored.system, "worst", one) for one in bad]
        chosen += [_example(scored.system, "random", one) for one in others]
    return chosen


def _example(system: str, kind: str, one: ScoredRow) -> dict[str, Any]:
    row, parsed = one.row, one.reading.parsed
    return {
        "system": system,
        "kind": kind,
        "task": row.task,
        "file": row.file,
        "id": row.id,
        "modality": row.modality,
        "source": row.source,
        "instruction": row.instruction,
        "prediction": row.prediction or "",
        "reference": row.reference,
        "error": row.error,
        "outcome": one.reading.outcome,
        "parsed": _whole(parsed) if isinstance(parsed, str | float | int) else None,
        "score": one.score,
    }


def _whole(value: Any) -> Any:
    """Return 60 rather than 60.0, as the answer said it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Sounds:
    """Gives clips of a corpus as data URIs, up to `AUDIO_BYTES` before base64.

    Args:
        corpus: the data the predictions were made from.
    """

    def __init__(self, corpus: EvalCorpus):
        self._corpus = corpus
        self._left = AUDIO_BYTES
        self._made: dict[str, list[str]] = {}

    def of(self, row_id: str) -> list[str]:
        """Return the row's clips as `data:` addresses; none if it is unknown or unreadable or the budget is spent."""
        if row_id not in self._made:
            row = self._corpus.row_of(row_id)
            self._made[row_id] = self._encode(row.index) if row else []
        return self._made[row_id]

    def _encode(self, index: int) -> list[str]:
        addresses = []
        for clip in self._corpus.clips(index):
            try:
                samples = read_audio(clip)[: int(CLIP_SECONDS * SAMPLE_RATE)]
            except ValueError as error:
                logger.warning("no player for row %d: %s", index, error)
                continue
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
            if len(buffer.getvalue()) > self._left:
                continue
            self._left -= len(buffer.getvalue())
            addresses.append("data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
        return addresses


def find_corpus(data: str | Path | None, systems: Sequence[Scored]) -> EvalCorpus | None:
    """Open the corpus to take sounds from: `data`, or the folder that the scores say the answers were made from.

    Returns:
        None if neither is at hand; a Hub id is only read when it is named as `data`.
    """
    for scored in systems:
        made = (scored.content.get("generation") or {}).get("data")
        if made is not None and (data is not None or Path(made["path"]).is_dir()):
            return EvalCorpus(data or made["path"], made["config"], made["split"])
    return EvalCorpus(data) if data is not None else None
