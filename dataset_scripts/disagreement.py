"""Compares recordings with their transcripts: a listener's text against each target.

`transcribe_rows` lets a listener hear every row of a transcript task and keeps what it heard beside the corpus, so
that an interrupted run goes on. `Disagreements` measures each row by it.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np

from llaso_common.audio import read_audio
from llaso_common.tasks import task_of

from . import corpus_folder
from .listeners import Listener

logger = logging.getLogger(__name__)

FEW = 0.2
"""A part of the text that differs in so few of its words is still taken for that part."""
LARGE = 0.5
"""From this word error rate on, something else is said."""
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SAME, DIFFERS, TRUNCATED, MORE, EMPTY, OTHER = KINDS = (
    "the same",
    "some words differ",
    "truncated",
    "more is said",
    "empty",
    "something else",
)
"""Kinds of disagreement between a recording and its text. It says the same; the same but for some words; only the
first or last part; all of it and more; nothing; or something else."""
COLUMNS = ("id", "task", "sha256")
"""Columns from which the recordings to transcribe are chosen."""
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?=\d)")
BATCHES_SORTED = 8
"""Batches whose clips are sorted by length together: a batch costs what its longest clip costs."""


@dataclass(frozen=True)
class Comparison:
    """How far a transcript is from its text: word error rate, character edit rate, and the kind, one of `KINDS`."""

    wer: float
    edit_rate: float
    kind: str
    errors: int
    words: int


def compare(text: str, heard: str, after_instruction: bool = False) -> Comparison:
    """Compare what was heard with the text, after Whisper's English normalizer (case, punctuation, numbers, fillers).

    Numbers are compared digit by digit.

    Args:
        text: the reference.
        heard: the transcript.
        after_instruction: the recording begins with a spoken instruction, which does not count: the part of the
            transcript from the word on that fits the text best is compared.
    """
    from rapidfuzz.distance import Levenshtein

    reference, words = _normalize(text).split(), _normalize(heard).split()
    if after_instruction:
        words = min((words[start:] for start in range(len(words) + 1)), key=lambda part: _distance(reference, part))
    errors = _distance(reference, words)
    said, given = " ".join(reference), " ".join(words)
    return Comparison(
        errors / max(len(reference), 1),
        Levenshtein.distance(said, given) / max(len(said), 1),
        _kind(reference, words),
        errors,
        len(reference),
    )


def _kind(reference: Sequence[str], words: Sequence[str]) -> str:
    errors, n, given = _distance(reference, words), len(reference), len(words)
    if not errors:
        return SAME
    if not given:
        return EMPTY
    if given <= (1 - FEW) * n and any(
        _distance(part, words) <= FEW * len(part)
        for length in range(max(1, given - 1), min(given + 1, int((1 - FEW) * n)) + 1)
        for part in (reference[:length], reference[n - length :])
    ):
        return TRUNCATED
    if (
        n
        and given >= (1 + FEW) * n
        and any(_distance(reference, words[start : start + n]) <= FEW * n for start in range(given - n + 1))
    ):
        return MORE
    return DIFFERS if errors < LARGE * n else OTHER


def _distance(one: Sequence[str], other: Sequence[str]) -> int:
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(one, other)


@functools.cache
def _normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _normalize(text: str) -> str:
    """Normalize a text, and take numbers apart: "seven three" and "7-3" are both "7 3"."""
    return _BETWEEN_DIGITS.sub(" ", _normalizer()(text))


def is_transcript(row: Mapping[str, Any]) -> bool:
    """Return whether a row's answer is what its recording says."""
    task = task_of(row)
    return task is not None and task.answer == "transcript"


# Listening -----------------------------------------------------------------------------------------------------


def transcribe_rows(
    folder: Path,
    listener: Listener,
    rows_of: Callable[[Path, Sequence[str]], Iterator[tuple[int, dict[str, Any] | None]]],
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Let a listener transcribe the recordings of all rows of transcript tasks; go on after an interruption.

    Args:
        folder: a corpus folder.
        listener: who listens.
        rows_of: yields the numbered rows of a shard with the named columns.
        batch_size: clips at once.
        progress: called with the recordings heard and those there are.

    Returns:
        The folder with a file for each shard; see `heard_in`.

    Raises:
        ValueError: no row has a transcript, or the listener answers with something else.
        ConnectionError: a server cannot be reached.
    """
    identity = json.dumps(listener.identity, sort_keys=True)
    kept = folder / ".build" / "heard" / sha256(identity.encode()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    files = corpus_folder.shard_files(folder)

    def recordings(file: Path) -> set[str]:
        rows = (row for _, row in rows_of(file, COLUMNS) if row and row["sha256"] and is_transcript(row))
        return {row["sha256"] for row in rows}

    total = sum(len(recordings(file)) for file in files)
    if not total:
        raise ValueError(f"{folder}: no row is a transcript, so there is nothing to listen for: leave --listen out")
    done = 0
    for file in files:
        wanted = recordings(file)
        missing = wanted - heard_in(kept, file).keys()
        done += len(wanted) - len(missing)
        if progress:
            progress(done, total)
        if not missing:
            continue
        with _open_records(kept, file) as records:
            for clips in _sorted_batches(_clips(rows_of(file, [*COLUMNS, "audio"]), missing), batch_size):
                heard = _of_rows(listener, clips)
                lines = [{"sha256": key, "heard": text} for key, text in heard.items() if text is not None]
                records.write("".join(json.dumps(line) + "\n" for line in lines))
                records.flush()
                done += len(clips)
                if progress:
                    progress(done, total)
    return kept


def heard_in(kept: Path, file: Path) -> dict[str, str]:
    """Return what was heard of the rows of a shard, by their `sha256`; a line torn by a kill is left out."""
    records = kept / f"{corpus_folder.shard_name(file)}.jsonl"
    lines = records.read_bytes().split(b"\n")[:-1] if records.exists() else []
    return {record["sha256"]: record["heard"] for record in map(json.loads, lines)}


def _open_records(kept: Path, file: Path) -> IO[str]:
    """Open the records of a shard to go on after the last whole line."""
    path = kept / f"{corpus_folder.shard_name(file)}.jsonl"
    opened = path.open("a+", encoding="utf-8")
    whole = path.read_bytes()
    opened.truncate(whole.rfind(b"\n") + 1)
    return opened


def _clips(
    rows: Iterable[tuple[int, dict[str, Any] | None]], missing: set[str]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the recordings that were not heard yet; those that cannot be read are left to the other checks."""
    for _, row in rows:
        if row is None or row["sha256"] not in missing:
            continue
        missing.discard(row["sha256"])
        try:
            yield row["sha256"], [read_audio(clip["bytes"], name=row["id"]) for clip in row["audio"]]
        except (ValueError, TypeError) as error:
            logger.info("not listened to: %s", error)


def _sorted_batches(
    clips: Iterable[tuple[str, list[np.ndarray]]], size: int
) -> Iterator[list[tuple[str, list[np.ndarray]]]]:
    held: list[tuple[str, list[np.ndarray]]] = []
    for one in clips:
        held.append(one)
        if len(held) == size * BATCHES_SORTED:
            yield from _cut(held, size)
            held = []
    yield from _cut(held, size)


def _cut(held: list[tuple[str, list[np.ndarray]]], size: int) -> Iterator[list[tuple[str, list[np.ndarray]]]]:
    held.sort(key=lambda one: -max(map(len, one[1]), default=0))
    for start in range(0, len(held), size):
        yield held[start : start + size]


def _of_rows(listener: Listener, rows: Sequence[tuple[str, list[np.ndarray]]]) -> dict[str, str | None]:
    """Return what was heard by row: the transcripts of its clips, one after another; None if one was refused."""
    texts = iter(listener.transcribe([clip for _, clips in rows for clip in clips]))
    heard: dict[str, str | None] = {}
    for key, clips in rows:
        parts = [next(texts) for _ in clips]
        heard[key] = None if None in parts else " ".join(str(part).strip() for part in parts)
    return heard


# Measuring -----------------------------------------------------------------------------------------------------


class Disagreements:
    """Measures rows by what was heard, counts them, and keeps the worst.

    Args:
        listener: its identity.
        kept: the folder that `transcribe_rows` returned.
        max_wer: a row with a higher word error rate is bad; None for no such limit.
        shown: how many of the worst rows to keep.
        listing: the file of all rows.
    """

    def __init__(
        self, listener: Mapping[str, str], kept: Path, max_wer: float | None, shown: int, listing: Path
    ) -> None:
        self._listener, self._kept, self._max, self._shown = listener, kept, max_wer, shown
        self._listing = listing.open("w", encoding="utf-8")
        self._kinds: Counter[str] = Counter()
        self._bins: Counter[int] = Counter()
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._file: Path | None = None
        self._heard: dict[str, str] = {}
        self._unheard = 0
        self._worst: list[tuple[float, str, Path, int, Comparison, str]] = []

    def fault(self, row: Mapping[str, Any], file: Path, index: int) -> str:
        """Measure a row; say why it is bad, or ""."""
        if not is_transcript(row):
            return ""
        if file != self._file:
            self._file, self._heard = file, heard_in(self._kept, file)
        heard = self._heard.get(row["sha256"])
        if heard is None:
            self._unheard += 1
            return ""
        found = compare(row["target"], heard, after_instruction=row["modality"] == "audio")
        self._kinds[found.kind] += 1
        self._bins[next((n for n, bound in enumerate(BINS) if found.wer <= bound), len(BINS))] += 1
        self._sources[row["source"]].update(rows=1, words=found.words, errors=found.errors)
        line = {
            "file": corpus_folder.shard_name(file), "row": index, "id": row["id"], "wer": round(found.wer, 4),
            "edit_rate": round(found.edit_rate, 4), "kind": found.kind, "text": row["target"], "heard": heard,
        }  # fmt: skip
        self._listing.write(json.dumps(line, ensure_ascii=False) + "\n")
        if found.errors and self._shown:
            self._worst.append((-found.wer, row["id"], file, index, found, heard))
            if len(self._worst) > 2 * self._shown:
                self._worst = sorted(self._worst, key=lambda one: one[:2])[: self._shown]
        if self._max is not None and found.wer > self._max:
            return f"heard otherwise: {found.kind}, word error rate {found.wer:.2f} above {self._max:g}: {heard!r}"
        return ""

    def close(self) -> None:
        """Close the listing."""
        self._listing.close()

    def worst(self) -> list[tuple[Path, int, Comparison, str]]:
        """Return the rows with the highest word error rates: their place, comparison and transcript."""
        ordered = sorted(self._worst, key=lambda one: one[:2])[: self._shown]
        return [(file, index, found, heard) for _, _, file, index, found, heard in ordered]

    def report(self) -> dict[str, Any]:
        """Return the listener, rows by kind and by word error rate, and the error rate of all rows and by source."""
        names = ["0", *(f"above {low:g} to {high:g}" for low, high in zip(BINS, BINS[1:], strict=False)), "above 1"]
        sums = sum(self._sources.values(), Counter[str]())
        return {
            "listener": dict(self._listener),
            "max_wer": self._max,
            "rows": sums["rows"],
            "not_heard": self._unheard,
            "wer": _rate(sums),
            "kinds": {kind: self._kinds[kind] for kind in KINDS if self._kinds[kind]},
            "wer_of_rows": {names[n]: self._bins[n] for n in range(max(self._bins, default=-1) + 1)},
            "sources": {
                name: {"rows": count["rows"], "wer": _rate(count)} for name, count in sorted(self._sources.items())
            },
        }


def _rate(sums: Mapping[str, int]) -> float | None:
    return round(sums["errors"] / sums["words"], 4) if sums["words"] else None
