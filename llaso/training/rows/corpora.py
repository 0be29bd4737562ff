"""Opens, checks and filters the corpora that a recipe names, and reads their rows by row group.

The input is the recipe's data section. The output is rows of the schema (`llaso_common/schema.py`), their audio still
encoded, with the expanded length of each, so that batches are planned before any audio is read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soxr
import torch

from llaso.alignment.alignment import TRANSCRIBED, TRANSCRIBED_FORMAT
from llaso_common.audio import read_audio
from llaso_common.open_corpus import NoSuchSplit
from llaso_common.schema import Row, clip_bytes
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import DataChoice
from .batch_plan import RowGroups
from .corpus_index import CorpusIndex, open_index

logger = logging.getLogger(__name__)


class TrainingRow(Row, total=False):
    """A row with the speed at which training plays its audio; without one, it is played as it is."""

    speed: float


@dataclass(frozen=True)
class CorpusPart:
    """The rows of one split that a recipe admits.

    Attributes:
        index: of all rows.
        rows: `(rows,)`, the numbers in the index of those admitted, in their order.
        groups: `(groups,)`, row groups that have any.
        starts: `(groups + 1,)`, where the rows of each begin among those admitted.
        lengths: `(rows,)`, tokens after audio expansion; of transcripts, at the slowest speed of the recipe.
    """

    index: CorpusIndex
    rows: np.ndarray
    groups: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def read_group(self, place: int, columns: Sequence[str] = ()) -> list[Row]:
        """Read the admitted rows of the row group at a place in `groups`; all that training reads, or some columns."""
        group = int(self.groups[place])
        table = self.index.read(group, columns or self.index.columns)
        inside = self.rows[self.starts[place] : self.starts[place + 1]] - self.index.starts[group]
        return (table if len(inside) == len(table) else table.take(inside)).to_pylist()


class Corpus:
    """The rows of a run: those of the corpus, and after them those without audio that are mixed in.

    Args:
        parts: the corpus, and perhaps the rows to mix in.
        drawn: rows of the second part that an epoch reads.
    """

    def __init__(self, parts: Sequence[CorpusPart], drawn: int = 0) -> None:
        self.parts = list(parts)
        first = parts[0]
        lengths, starts = first.lengths, first.starts
        if len(parts) > 1:
            lengths = np.concatenate([lengths, parts[1].lengths])
            starts = np.concatenate([starts, len(first.rows) + parts[1].starts[1:]])
        self.row_groups = RowGroups(lengths, starts, len(first.groups) if len(parts) > 1 else None, drawn)
        self._group = functools.lru_cache(maxsize=2)(self.read_group)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row after audio expansion, `(rows,)`."""
        return self.row_groups.lengths

    @property
    def rows(self) -> int:
        """Rows in all."""
        return len(self.lengths)

    @property
    def bytes_read(self) -> int:
        """Bytes of column chunks read so far, as they lie in the files."""
        return sum(part.index.reader.bytes_read for part in self.parts)

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the row group of each row."""
        return np.searchsorted(self.row_groups.starts, rows, side="right") - 1

    def read_group(self, group: int, columns: Sequence[str] = ()) -> list[Row]:
        """Read the rows of a row group: all that training reads of them, or some columns."""
        of_first = len(self.parts[0].groups)
        part, place = (self.parts[0], group) if group < of_first else (self.parts[1], group - of_first)
        return part.read_group(place, columns)

    def first(self, rows: int | None, columns: Sequence[str]) -> Iterator[Row]:
        """Yield some columns of the first `rows` rows, or of all of them."""
        groups = range(len(self.row_groups.starts) - 1)
        return itertools.islice((row for group in groups for row in self.read_group(group, columns)), rows)

    def __getitem__(self, number: int) -> Row:
        """Return one row; its row group, and the one asked for before, stay in memory."""
        group = int(self.groups_of(np.array([number]))[0])
        return self._group(group)[number - int(self.row_groups.starts[group])]

    def __iter__(self) -> Iterator[Row]:
        """Yield every row, a row group at a time."""
        for group in range(len(self.row_groups.starts) - 1):
            yield from self.read_group(group)

    def by_length(self) -> Iterator[Row]:
        """Yield every row, a row group at a time, each in the order of length."""
        starts = self.row_groups.starts
        for group in range(len(starts) - 1):
            rows = self.read_group(group)
            yield from (
                rows[place] for place in self.lengths[starts[group] : starts[group + 1]].argsort(kind="stable")
            )

    def seconds(self) -> np.ndarray:
        """Return the seconds of audio of every row, `(rows,)`; 0 where the corpus does not say."""
        return np.concatenate([part.index.known["duration"].to_numpy()[part.rows] for part in self.parts])

    def tasks(self) -> Counter[str]:
        """Count the rows of each task."""
        counts = Counter[str]()
        for part in self.parts:
            for found in pc.value_counts(part.index.known["task"].combine_chunks().take(part.rows)).to_pylist():
                counts[found["values"]] += found["counts"]
        return counts

    def digest(self) -> str:
        """Digest what the order of rows depends on: ids, lengths, and where the row groups begin."""
        digest = hashlib.sha256("".join(part.index.digest for part in self.parts).encode())
        digest.update(np.ascontiguousarray(self.lengths, dtype=np.int64).tobytes())
        digest.update(self.row_groups.starts.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def open_corpus(choice: DataChoice, processor: LlasoProcessor | None = None, workers: int = 0) -> Corpus:
    """Open the training rows of a recipe. Columns are read, or what an earlier run kept of them; no audio is.

    Args:
        choice: the recipe's data section.
        processor: of the model that is to read them; counts their lengths. Without one, the column `length` is
            trusted, and estimated if it is missing.
        workers: processes that count lengths if the corpus does not have them.

    Raises:
        ValueError: a column is missing, or no row passes the recipe's filters.
        FileNotFoundError: no such corpus.
    """
    index = open_index(choice.path, choice.split, choice.config, choice.revision)
    part = _part(index, _admitted(index, choice), processor, choice.path, workers)
    parts, drawn = [_at_slowest_speed(part, choice, processor)], 0
    if choice.text_path:
        text = open_index(choice.text_path, choice.split, "default", choice.text_revision)
        parts.append(_part(text, np.arange(len(text.known)), processor, choice.text_path, workers))
        wanted = round(len(parts[0].rows) * choice.text_share / (1 - choice.text_share))
        drawn = min(len(text.known), wanted)
        if drawn < wanted:
            share = drawn / (drawn + len(parts[0].rows))
            logger.warning(
                "%s has %d rows, fewer than data.text_share=%g needs: they are %.0f%% of an epoch",
                choice.text_path, drawn, choice.text_share, 100 * share,
            )  # fmt: skip
    return Corpus(parts, drawn)


def open_held_out(choice: DataChoice, task: str, rows: int) -> list[Row]:
    """Draw `rows` held-out rows of one task by a digest of their ids; none if there is no such split or task."""
    try:
        index = open_index(choice.path, choice.validation_split, choice.config, choice.revision)
    except NoSuchSplit:
        logger.warning("%s has no split %s: nothing is held out", choice.path, choice.validation_split)
        return []
    of_task = np.flatnonzero(_among(index.known["task"], (task,)))
    if not rows:
        return []
    digests = map(_digest, _column(index, of_task, "id"))
    drawn = [row for _, row in sorted(zip(digests, of_task.tolist(), strict=True))[:rows]]
    part = _part_of(index, np.array(sorted(drawn), dtype=np.int64), np.zeros(len(drawn)))
    read = (row for place in range(len(part.groups)) for row in part.read_group(place))
    found = dict(zip(part.rows.tolist(), read, strict=True))
    return [found[row] for row in drawn]


def decode_audio(row: Row, sampling_rate: int) -> list[np.ndarray]:
    """Decode a row's clips to mono float32 samples.

    Raises:
        ValueError: a clip cannot be read or is silent; the message says which.
    """
    return [
        read_audio(clip_bytes(item), sampling_rate, name=f"clip {number}")
        for number, item in enumerate(row["audio"] or [])
    ]


def log_mels(row: Row, processor: LlasoProcessor, speed: float = 1.0) -> list[tuple[int, list[torch.Tensor]]]:
    """Return, for each clip of a row, its number of audio tokens and its log-mel windows, `(mels, frames)` each.

    Args:
        row: its audio still encoded.
        processor: cuts the audio and makes the log-mels.
        speed: to play the clips at, which changes their pitch as well.
    """
    clips, rate = [], processor.feature_extractor.sampling_rate
    for samples in decode_audio(row, rate):
        if speed != 1:
            samples = soxr.resample(samples, speed * rate, rate, quality="HQ")
        mels = processor.log_mel(processor.window_samples(samples))
        clips.append((processor.count_audio_tokens(len(samples)), mels))
    return clips


def _part(
    index: CorpusIndex, rows: np.ndarray, processor: LlasoProcessor | None, where: str, workers: int
) -> CorpusPart:
    everything = len(rows) == len(index.known)
    lengths = index.lengths(processor, where, workers, None if everything else rows)
    return _part_of(index, rows, lengths if everything else lengths[rows])


def _part_of(index: CorpusIndex, rows: np.ndarray, lengths: np.ndarray) -> CorpusPart:
    borders = np.searchsorted(rows, index.starts)
    groups = np.flatnonzero(np.diff(borders))
    return CorpusPart(index, rows, groups, np.append(borders[groups], len(rows)), lengths)


def _column(index: CorpusIndex, rows: np.ndarray, name: str) -> list[str]:
    """Return one column of some rows, which are in order, as text; empty where it has no value."""
    part = _part_of(index, rows, np.zeros(len(rows)))
    values: list[str] = []
    for place, group in enumerate(part.groups.tolist()):
        inside = rows[part.starts[place] : part.starts[place + 1]] - index.starts[group]
        values += (str(value or "") for value in index.read(group, [name])[name].take(inside).to_pylist())
    return values


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _among(column: pa.ChunkedArray, names: Iterable[str]) -> np.ndarray:
    """Return which values of a dictionary-encoded column are among some names, `(rows,)`."""
    return pc.is_in(column.cast(pa.string()), pa.array(names, pa.string())).to_numpy()


def _at_slowest_speed(part: CorpusPart, choice: DataChoice, processor: LlasoProcessor | None) -> CorpusPart:
    """Return a part with the lengths of its transcripts at the slowest speed, so that no batch exceeds its plan.

    A recording that would be longer than the processor takes keeps its own speed.
    """
    if (slowest := choice.slowest_speed) == 1:
        return part

    def slowed(length: int, seconds: float) -> int:
        if processor is None or not 0 < seconds < math.inf:
            return math.ceil(length / slowest)
        rate, count = processor.feature_extractor.sampling_rate, processor.count_audio_tokens
        with contextlib.suppress(ValueError):
            length += count(math.ceil(seconds * rate / slowest) + 1) - count(round(seconds * rate))
        return length

    known, lengths = part.index.known, part.lengths.copy()
    transcribed = _among(known["task"], TRANSCRIBED) & _among(known["modality"], (TRANSCRIBED_FORMAT,))
    places = np.flatnonzero(transcribed[part.rows])
    seconds = known["duration"].to_numpy()[part.rows[places]]
    lengths[places] = list(map(slowed, lengths[places].tolist(), seconds.tolist()))
    return replace(part, lengths=lengths)


def _admitted(index: CorpusIndex, choice: DataChoice) -> np.ndarray:
    """Return the numbers of the rows of the recipe's tasks, formats and share of the speech."""
    if not len(index.known):
        raise ValueError(f"{choice.path}, split {choice.split}: no rows")
    rows = _of_kinds(index, choice)
    return rows if choice.speech_share == 1 else _of_speakers(index, rows, choice)


def _of_speakers(index: CorpusIndex, rows: np.ndarray, choice: DataChoice) -> np.ndarray:
    """Return the rows of speakers who together have a share of the seconds, drawn by a digest of their names.

    A row with audio but without a speaker is a speaker of its own. Rows without audio stay.

    Raises:
        ValueError: the corpus has no column `speaker`, or the first speaker drawn has more than the share.
    """
    if "speaker" not in index.reader.schema(0).names:
        raise ValueError(
            f"{choice.path}: data.speech_share draws whole speakers, but there is no column speaker; set it to 1"
        )
    seconds = index.known["duration"].to_numpy()[rows]
    spoken = seconds > 0
    pairs = zip(_column(index, rows, "speaker"), rows.tolist(), strict=True)
    speakers = np.array([name or f"row {row}" for name, row in pairs])
    names, numbers = np.unique(speakers[spoken], return_inverse=True)
    if not len(names):
        return rows
    order = np.array(sorted(range(len(names)), key=lambda number: _digest(str(names[number]))))
    total = np.bincount(numbers, weights=seconds[spoken])[order].cumsum()
    count = int((total <= choice.speech_share * total[-1]).sum())
    if not count:
        raise ValueError(
            f"{choice.path}: data.speech_share={choice.speech_share:g} of {total[-1]:,.0f} s is less than the first "
            f"speaker has ({total[0]:,.0f} s); set a larger share"
        )
    return rows[~spoken | np.isin(speakers, names[order[:count]])]


def _of_kinds(index: CorpusIndex, choice: DataChoice) -> np.ndarray:
    """Return the numbers of the rows of the recipe's tasks and formats."""
    rows = np.arange(len(index.known))
    if not (choice.tasks or choice.without_tasks or choice.without_modalities):
        return rows
    tasks, formats = index.known["task"], index.known["modality"]
    there = cast(list[str], sorted(filter(None, tasks.unique().to_pylist())))
    if absent := sorted({*choice.tasks, *choice.without_tasks} - set(there)):
        raise ValueError(
            f"{choice.path}: data.tasks or data.without_tasks names {', '.join(absent)}, which it has no row of; it "
            f"has {', '.join(there)}"
        )
    admitted = ~_among(tasks, choice.without_tasks) & ~_among(formats, choice.without_modalities)
    if choice.tasks:
        admitted &= _among(tasks, choice.tasks)
    if not admitted.any():
        pairs = pa.table({"task": tasks, "format": formats}).group_by(["task", "format"]).aggregate([]).to_pylist()
        has = ", ".join(sorted(f"{pair['task']} ({pair['format']})" for pair in pairs))
        raise ValueError(
            f"{choice.path}: data.tasks, data.without_tasks and data.without_modalities leave no row; it has {has}"
        )
    return rows[admitted]
