"""Single rows for the report: the worst answers of every task and some drawn at random, with their sound.

Clips are cut short and re-encoded as MP3, and stop altogether when a budget of bytes is spent, so that the page stays
one file of a decent size. The draw depends on the seed and the rows alone.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from . import readers, score
from .answer_records import GENERATION
from .corpus import Corpus, decode_audio, digest

logger = logging.getLogger(__name__)

CLIP_SECONDS = 20.0
AUDIO_BYTES = 8_000_000
SAMPLE_RATE = 16_000


def choose_examples(
    predictions: Path,
    tasks: Mapping[str, Mapping[str, Any]],
    protocol: str,
    *,
    system: str | None = None,
    worst: int = 2,
    drawn: int = 2,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Pick rows of one system.

    Args:
        predictions: folder of answers, ours or released ones.
        tasks: task -> its entry in the report: `direction` of the ranking metric, and the value `perfect`.
        protocol: whose reading of the answers is shown.
        system: its name in the report.
        worst: rows a task with the worst score of their own; none that is perfect.
        drawn: rows a task picked at random.
        seed: of the draw.

    Returns:
        One entry a row: why it was picked, what was asked, answered, read and expected.
    """
    answers = readers.read(predictions, system)
    measured = score.measure(answers.files, protocol)
    records = {(record["file"], record["id"]): record for record in score.row_records(measured)}
    by_task: dict[str, list[readers.Row]] = {}
    for rows in answers.files.values():
        for row in rows:
            by_task.setdefault(row.task, []).append(row)
    chosen = []
    for task, rows in by_task.items():
        if task not in tasks:
            continue

        def badness(row: readers.Row, task: str = task) -> float:
            points = records[row.file, row.id]["score"]
            if points is None or points == tasks[task].get("perfect"):
                return -math.inf
            return points if tasks[task].get("direction") == "lower" else -points

        shuffled = sorted(rows, key=lambda row: digest(seed, row.file, row.id))
        bad = [row for row in sorted(shuffled, key=badness, reverse=True) if badness(row) > -math.inf][:worst]
        taken = {(row.file, row.id) for row in bad}
        others = [row for row in shuffled if (row.file, row.id) not in taken][:drawn]
        for kind, picked in (("worst", bad), ("random", others)):
            for row in picked:
                chosen.append(_example(answers.system, kind, row, records[row.file, row.id]))
    return chosen


def _example(system: str, kind: str, row: readers.Row, record: Mapping[str, Any]) -> dict[str, Any]:
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
        "outcome": record["outcome"],
        "parsed": _whole(record["parsed"]),
        "score": record["score"],
    }


def _whole(value: Any) -> Any:
    """60 rather than 60.0, as the answer said it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Sounds:
    """Clips of a corpus as data URIs, within a budget.

    Args:
        corpus: the data the predictions were made from.
        budget: bytes of audio to hand out, before base64.
    """

    def __init__(self, corpus: Corpus, budget: int = AUDIO_BYTES):
        self._corpus = corpus
        self._rows = {row.id: row for row in corpus.rows}
        self._left = budget
        self._made: dict[str, list[str]] = {}

    def of(self, row_id: str) -> list[str]:
        """The row's clips as `data:` addresses; empty where it is unknown, unreadable or the budget is spent."""
        if row_id not in self._made:
            row = self._rows.get(row_id)
            self._made[row_id] = self._encode(row.index) if row else []
        return self._made[row_id]

    def _encode(self, index: int) -> list[str]:
        addresses = []
        for clip in self._corpus.clips(index):
            try:
                samples = decode_audio(clip, SAMPLE_RATE)[: int(CLIP_SECONDS * SAMPLE_RATE)]
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


def find_corpus(data: str | Path | None, predictions: Sequence[Path]) -> Corpus | None:
    """The corpus to take sounds from: `data`, or the folder that the predictions say they were made from.

    Returns:
        None where neither is at hand; a Hub id is only read when it is named as `data`.
    """
    for folder in predictions:
        if not (folder / GENERATION).exists():
            continue
        made = json.loads((folder / GENERATION).read_text(encoding="utf-8"))["data"]
        if data is not None or Path(made["path"]).is_dir():
            return Corpus(data or made["path"], made["config"], made["split"])
    return Corpus(data) if data is not None else None
