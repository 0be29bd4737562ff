"""Opens, checks and filters the corpora that a recipe names, numbered or streamed.

The input is the recipe's data section. The output is rows of the schema (`llaso_common/schema.py`), their audio still
encoded, with the expanded length of each, so that batches are planned before any audio is decoded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from llaso_common.audio import read_audio
from llaso_common.open_corpus import open_split
from llaso_common.schema import Row, clip_bytes
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import DataChoice
from .batch_plan import BatchRule, shuffled_windows, stream_windows
from .corpus_columns import checked_columns, column_of
from .row_lengths import COMPARED, length_rule, lengths_of

logger = logging.getLogger(__name__)

Windows = Callable[[int], Iterator[list[tuple[Any, int]]]]
"""A function from the number of an epoch to its windows of `(row or row number, length in tokens)`."""


@dataclass
class NumberedCorpus:
    """A corpus whose rows have numbers: first `audio_rows` rows, then text-only ones, some drawn each epoch."""

    table: datasets.Dataset
    lengths: np.ndarray  # (rows,) tokens after audio expansion
    audio_rows: int
    text_drawn: int = 0

    @property
    def rows(self) -> int:
        """Rows in all."""
        return len(self.lengths)

    def __getitem__(self, number: int) -> Row:
        return self.table[number]

    def windows(self, rule: BatchRule, seed: int) -> Windows:
        """Return a function that yields an epoch's rows, shuffled, a window at a time."""
        return shuffled_windows(self.lengths, rule, seed, self.audio_rows, self.text_drawn)


@dataclass
class StreamedCorpus:
    """A corpus read from its beginning while training, shuffled in a buffer."""

    stream: datasets.IterableDataset
    length_of: Callable[[Row], int]
    buffer: int = 1000
    rows: int = 0  # not known

    def __getitem__(self, row: Row) -> Row:
        """Return the row itself: a stream has no numbers, so its batches carry the rows."""
        return row

    def windows(self, rule: BatchRule, seed: int) -> Windows:
        """Return a function that yields the stream a window at a time; each epoch shuffles files and buffer again."""

        def stream(epoch: int) -> datasets.IterableDataset:
            shuffled = self.stream.shuffle(seed=seed, buffer_size=self.buffer)
            shuffled.set_epoch(epoch)
            return shuffled

        return stream_windows(stream, self.length_of, rule)


Corpus = NumberedCorpus | StreamedCorpus


def open_corpus(choice: DataChoice, seed: int, processor: LlasoProcessor | None = None, workers: int = 0) -> Corpus:
    """Open the training rows of a recipe.

    Args:
        choice: the recipe's data section.
        seed: of the run.
        processor: of the model that is to read them; counts their lengths. Without one, the column `length` is
            trusted, and estimated if it is missing.
        workers: processes that count lengths if the corpus does not have them.

    Raises:
        ValueError: a column is missing, or no row passes the recipe's filters.
        FileNotFoundError: no such corpus.
    """
    if choice.streaming:
        stream = _load(choice.path, choice, choice.split, streaming=True)
        if (admit := _filter(choice)) is not None:
            stream = stream.filter(admit, input_columns=["task", "modality"])
        length_of = length_rule(stream.take(COMPARED), processor, choice.path)
        if choice.text_path:
            text = _load(choice.text_path, choice, choice.split, streaming=True, config="default")
            text_length = length_rule(text.take(COMPARED), processor, choice.text_path)
            shares = [1 - choice.text_share, choice.text_share]
            stream = datasets.interleave_datasets(
                [stream, text], shares, seed=seed, stopping_strategy="first_exhausted"
            )
            return StreamedCorpus(stream, lambda row: (length_of if row["audio"] else text_length)(row))
        return StreamedCorpus(stream, length_of)

    table = _admitted(_load(choice.path, choice, choice.split), choice)
    audio_rows, text_drawn = len(table), 0
    if choice.text_path:
        text = _load(choice.text_path, choice, choice.split, config="default")
        text_drawn = min(len(text), round(audio_rows * choice.text_share / (1 - choice.text_share)))
        known = datasets.Features({name: table.features.get(name, kind) for name, kind in text.features.items()})
        table = datasets.concatenate_datasets([table, text.cast(known)])
    return NumberedCorpus(table, lengths_of(table, processor, choice.path, workers), audio_rows, text_drawn)


def open_held_out(choice: DataChoice, task: str, rows: int) -> list[Row]:
    """Draw `rows` held-out rows of one task by a digest of their ids; none if there is no such split or task."""
    try:
        table = _load(choice.path, choice, choice.validation_split)
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            logger.warning("%s has no split %s: nothing is held out", choice.path, choice.validation_split)
            return []
        raise
    columns = (column_of(table, name).to_pylist() for name in ("id", "task"))
    numbered = enumerate(zip(*columns, strict=True))
    chosen = sorted(
        (hashlib.sha256(str(key).encode()).digest(), number) for number, (key, code) in numbered if code == task
    )
    return [table[number] for _, number in chosen[:rows]]


def decode_audio(row: Row, sampling_rate: int) -> list[np.ndarray]:
    """Decode a row's clips to mono float32 samples.

    Raises:
        ValueError: a clip cannot be read or is silent; the message says which.
    """
    return [
        read_audio(clip_bytes(item), sampling_rate, name=f"clip {number}")
        for number, item in enumerate(row["audio"] or [])
    ]


def log_mels(row: Row, processor: LlasoProcessor) -> list[tuple[int, list[torch.Tensor]]]:
    """Return, for each clip of a row, its number of audio tokens and its log-mel windows, `(mels, frames)` each."""
    clips = []
    for samples in decode_audio(row, processor.feature_extractor.sampling_rate):
        cuts = processor.audio_windows(len(samples))
        mels = processor.log_mel([samples[start:stop] for start, stop in cuts])
        clips.append((processor.count_audio_tokens(len(samples)), mels))
    return clips


def _load(path: str, choice: DataChoice, split: str, streaming: bool = False, config: str | None = None) -> Any:
    """Open one split with the columns that training reads."""
    table = open_split(path, split, config or choice.config, revision=choice.revision, streaming=streaming)
    table = table.select_columns(checked_columns(table.features or {}, f"{path}, split {split}"))
    clip = table.features["audio"].feature
    if not isinstance(clip, datasets.Audio) or clip.decode:
        table = table.cast_column("audio", datasets.List(datasets.Audio(decode=False)))
    return table


def _filter(choice: DataChoice) -> Callable[[str, str], bool] | None:
    """Return a test of whether a row's task and format are wanted; None if all are."""
    wanted, unwanted, formats = set(choice.tasks), set(choice.without_tasks), set(choice.without_modalities)
    if not wanted and not unwanted and not formats:
        return None
    return lambda task, modality: (not wanted or task in wanted) and task not in unwanted and modality not in formats


def _admitted(table: datasets.Dataset, choice: DataChoice) -> datasets.Dataset:
    """Select the rows of the recipe's tasks and formats."""
    if not len(table):
        raise ValueError(f"{choice.path}, split {choice.split}: no rows")
    if not (choice.tasks or choice.without_tasks or choice.without_modalities):
        return table
    tasks, formats = column_of(table, "task"), column_of(table, "modality")
    if absent := sorted({*choice.tasks, *choice.without_tasks} - set(tasks.unique().to_pylist())):
        raise ValueError(
            f"{choice.path}: data.tasks or data.without_tasks names {', '.join(absent)}, which it has no row of; it "
            f"has {', '.join(sorted(tasks.unique().to_pylist()))}"
        )

    def among(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
        return pc.is_in(column, pa.array(names, pa.string())).to_numpy()

    admitted = ~among(tasks, choice.without_tasks) & ~among(formats, choice.without_modalities)
    if choice.tasks:
        admitted &= among(tasks, choice.tasks)
    if not admitted.any():
        pairs = sorted({f"{task} ({form})" for task, form in zip(tasks.to_pylist(), formats.to_pylist(), strict=True)})
        raise ValueError(
            f"{choice.path}: data.tasks, data.without_tasks and data.without_modalities leave no row; it has "
            f"{', '.join(pairs)}"
        )
    return table.select(np.flatnonzero(admitted))
