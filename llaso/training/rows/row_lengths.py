"""Counts the tokens of every row after audio expansion, before any audio is decoded.

Rows are counted by the processor's own `expanded_length`, so planned lengths are those of the batches. A corpus's
`length` column is used if it agrees; otherwise rows are counted again from their text and durations, once, and
datasets' cache keeps the result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import pyarrow as pa

from llaso_common.audio import ENCODER_FRAMES_PER_SECOND, audio_seconds
from llaso_common.folder_lock import one_at_a_time
from llaso_common.schema import Row, clean_messages
from modeling_llaso.processing_llaso import LlasoProcessor

from .corpus_columns import column_of

logger = logging.getLogger(__name__)

COMPARED = 64
"""Rows whose `length` is counted again before the column is trusted."""
WORTH_TELLING = 100_000
"""Number of rows above which counting takes so long that a warning says why."""
CHARACTERS_PER_TOKEN = 4
"""Characters per token of a usual tokenizer: estimates a text's length if no processor counts it."""


def lengths_of(table: datasets.Dataset, processor: LlasoProcessor | None, where: str, workers: int = 0) -> np.ndarray:
    """Return the expanded length of every row, `(rows,)`.

    Args:
        table: rows of the schema; `length` may be absent, 0, or of another processor.
        processor: of the model that reads them; None trusts the column and estimates missing values.
        where: the corpus's name, for messages.
        workers: processes that count, if rows must be counted.
    """
    column = np.zeros(len(table), dtype=np.int64)
    if "length" in table.column_names:
        column = column_of(table, "length").fill_null(0).cast(pa.int64()).to_numpy().clip(min=0)
    given = np.flatnonzero(column)
    if processor is not None:
        compared = (table[int(number)] for number in given[:: max(1, len(given) // COMPARED)])
        if foreign := _foreign(compared, processor):
            _warn_of_foreign(foreign, where)
            column[:] = 0
    missing = np.flatnonzero(column == 0)
    if not len(missing):
        return column
    if len(missing) > WORTH_TELLING:
        logger.warning(
            "%s: counting the tokens of %d rows, once; a corpus built with `llaso data build --processor MODEL` has "
            "them in its `length` column",
            where,
            len(missing),
        )
    column[missing] = _counted(table.select(missing), processor, workers)
    alone = [number for number in missing if not column[number]]  # their headers have to be read
    for number in alone:
        column[number] = row_length(table[int(number)], processor)
    return column


def length_rule(first_rows: Iterable[Row], processor: LlasoProcessor | None, where: str) -> Callable[[Row], int]:
    """Return a streamed row's length rule: its `length`, unless the first rows were counted for another processor.

    Args:
        first_rows: the first few of the stream.
        processor: of the model that reads them; None trusts the column and estimates missing values.
        where: the corpus's name, for messages.
    """
    if processor is not None and (foreign := _foreign((r for r in first_rows if r.get("length")), processor)):
        _warn_of_foreign(foreign, where)
        return lambda row: row_length(row, processor)
    return lambda row: row.get("length") or row_length(row, processor)


def row_length(row: Row, processor: LlasoProcessor | None) -> int:
    """Count the tokens of one row; 1 if it cannot be counted: the collator then says why it cannot be trained on."""
    try:
        messages = clean_messages(row)
        if processor is None:
            characters = sum(len(part.get("text", "")) for message in messages for part in message["content"])
            return max(1, int(_known_seconds(row) * ENCODER_FRAMES_PER_SECOND) + characters // CHARACTERS_PER_TOKEN)
        return processor.expanded_length(messages, clip_seconds(row))
    except (ValueError, OSError) as error:
        logger.debug("row %s cannot be counted: %s", row["id"], error)
        return 1


def clip_seconds(row: Row) -> list[float]:
    """Return the seconds of each clip: the row's duration if it has one clip, else those in the clips' headers.

    Raises:
        ValueError: a clip is null.
    """
    clips = row["audio"] or []
    if len(clips) == 1 and (seconds := _known_seconds(row)):
        return [seconds]
    if None in clips:
        raise ValueError("a clip of it is null")
    return [audio_seconds(clip) for clip in clips]


def _known_seconds(row: Row) -> float:
    """Return a row's duration; 0 if it is missing, negative or infinite."""
    seconds = row.get("duration") or 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def _counted(table: datasets.Dataset, processor: LlasoProcessor | None, workers: int) -> np.ndarray:
    """Count lengths from text and durations alone; 0 for rows whose clips have to be read."""
    cheap = table.select_columns([name for name in ("id", "messages", "duration") if name in table.column_names])

    def count(row: Row) -> dict[str, int]:
        try:
            messages = clean_messages(row)
        except ValueError:
            return {"length": 1}  # the value that `row_length` returns for a row that cannot be counted
        clips = sum(part["type"] == "audio" for message in messages for part in message["content"])
        if clips > 1 or (clips and not _known_seconds(row)):
            return {"length": 0}
        return {"length": row_length(cast(Row, {**row, "audio": [None] * clips}), processor)}

    files = table.cache_files
    folder = Path(files[0]["filename"]).parent if files else Path(datasets.config.HF_DATASETS_CACHE)
    fingerprint = hashlib.sha256(f"{cheap._fingerprint} {_rule(processor)}".encode()).hexdigest()[:16]
    with one_at_a_time(folder, logger.info):  # one process of a machine counts, the others read its result
        counted = cheap.map(
            count,
            remove_columns=cheap.column_names,
            new_fingerprint=fingerprint,
            num_proc=workers if workers > 1 and len(cheap) > 1000 * workers else None,
        )
    return column_of(counted, "length").to_numpy()


def _rule(processor: LlasoProcessor | None) -> str:
    """Return as text all that a row's length depends on besides the row."""
    if processor is None:
        return "estimate"
    settings = [processor.audio_padding, processor.projector_stride, processor.max_audio_len, processor.chat_template]
    return json.dumps([*settings, processor.tokenizer.backend_tokenizer.to_str()], sort_keys=True)


def _foreign(rows: Iterable[Row], processor: LlasoProcessor) -> tuple[Row, int] | None:
    """Return the first row whose `length` is not this processor's, and the right length; None if all agree."""
    for row in rows:
        counted = row_length(row, processor)
        # Durations are kept to a tenth of a millisecond, which may move a clip's end by one token.
        if counted > 1 and abs(counted - row["length"]) > len(row["audio"] or []):
            return row, counted
    return None


def _warn_of_foreign(foreign: tuple[Row, int], where: str) -> None:
    row, counted = foreign
    logger.warning(
        "%s: the `length` column was counted for another processor (row %s: %d tokens there, %d here); every row is "
        "counted anew. `llaso data build --processor MODEL` fills the column for the model that is to read it",
        where,
        row["id"],
        row["length"],
        counted,
    )
