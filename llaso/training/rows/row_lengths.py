"""Counts the tokens of every row after audio expansion, before any audio is decoded.

Rows are counted by the processor's own `expanded_length`, so planned lengths are those of the batches. A corpus's
`length` column is used if it agrees; otherwise rows are counted again from their text and durations.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llaso_common.audio import ENCODER_FRAMES_PER_SECOND, audio_seconds
from llaso_common.end_with_parent import end_with_parent
from llaso_common.schema import Row, clean_messages
from modeling_llaso.processing_llaso import LlasoProcessor

if TYPE_CHECKING:
    from .corpus_index import CorpusIndex

logger = logging.getLogger(__name__)

COMPARED = 64
"""Rows whose `length` is counted again before the column is trusted."""
WORTH_TELLING = 100_000
"""Number of rows above which counting takes so long that a warning says why."""
COUNTED = ("id", "messages", "duration")
"""Columns from which a row of one clip, or none, is counted."""
CHARACTERS_PER_TOKEN = 4
"""Characters per token of a usual tokenizer: estimates a text's length if no processor counts it."""


def count_lengths(
    index: CorpusIndex,
    processor: LlasoProcessor | None,
    where: str,
    workers: int = 0,
    wanted: np.ndarray | None = None,
    counted: np.ndarray | None = None,
) -> np.ndarray:
    """Return the expanded length of every row, `(rows,)`; 0 for rows that are not wanted and were not counted.

    Args:
        index: of rows of the schema; `length` may be absent, 0, or of another processor.
        processor: of the model that reads them; None trusts the column and estimates missing values.
        where: the corpus's name, for messages.
        workers: processes that count, if rows must be counted.
        wanted: numbers of the rows whose lengths are needed; all by default.
        counted: lengths that were counted before, by this processor.
    """
    if counted is not None:
        lengths = counted.copy()
    else:
        lengths = index.known["length"].to_numpy().clip(min=0).astype(np.int32)
        given = np.flatnonzero(lengths)
        compared = given[:: max(1, -(-len(given) // COMPARED))]
        if processor is not None and (foreign := _foreign(index, compared, processor)):
            _warn_of_foreign(*foreign, where)
            lengths[:] = 0
    missing = np.flatnonzero(lengths == 0) if wanted is None else wanted[lengths[wanted] == 0]
    if not len(missing):
        return lengths
    if len(missing) > WORTH_TELLING:
        logger.warning(
            "%s: counting the tokens of %d rows, once; a corpus built with `llaso data build --processor MODEL` has "
            "them in its `length` column",
            where,
            len(missing),
        )
    groups = np.unique(np.searchsorted(index.starts, missing, side="right") - 1).tolist()
    absent = np.zeros(len(lengths), dtype=bool)
    absent[missing] = True
    for group, found in zip(groups, _counted(index, groups, processor, workers), strict=True):
        rows = slice(index.starts[group], index.starts[group + 1])
        lengths[rows] = np.where(absent[rows], found, lengths[rows])
    return lengths


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


def _counted(
    index: CorpusIndex, groups: Sequence[int], processor: LlasoProcessor | None, workers: int
) -> Iterator[np.ndarray]:
    """Yield the lengths of the rows of each row group, in the order of `groups`."""
    if workers < 2 or len(groups) < 10 * workers:
        yield from (_lengths_in(index, group, processor) for group in groups)
        return
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(index, processor)) as pool:
        yield from pool.map(_lengths_here, groups, chunksize=8)


def _lengths_in(index: CorpusIndex, group: int, processor: LlasoProcessor | None) -> np.ndarray:
    """Count a row group's lengths from text and durations; its audio is read only for rows that need their headers."""
    rows: list[Row] = index.read(group, COUNTED).to_pylist()
    counted = [_from_text(row, processor) for row in rows]
    if None in counted:
        audio = index.read(group, ["audio"])["audio"]
        for number, length in enumerate(counted):
            if length is None:
                counted[number] = row_length({**rows[number], "audio": audio[number].as_py()}, processor)
    return np.array(counted, dtype=np.int32)


def _from_text(row: Row, processor: LlasoProcessor | None) -> int | None:
    """Return a row's length, or None if the headers of its clips have to be read."""
    try:
        messages = clean_messages(row)
    except ValueError:
        return 1  # the value that `row_length` returns for a row that cannot be counted
    clips = _clips_in(messages)
    if processor is not None and (clips > 1 or (clips and not _known_seconds(row))):
        return None
    return row_length(cast(Row, {**row, "audio": [None] * clips}), processor)


def _clips_in(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(part["type"] == "audio" for message in messages for part in message["content"])


_here: tuple[CorpusIndex, LlasoProcessor | None]
"""What a counting process counts with."""


def _begin(index: CorpusIndex, processor: LlasoProcessor | None) -> None:
    global _here
    end_with_parent()
    _here = index, processor


def _lengths_here(group: int) -> np.ndarray:
    return _lengths_in(_here[0], group, _here[1])


def counting_rule(processor: LlasoProcessor | None) -> str:
    """Return as text all that a row's length depends on besides the row."""
    if processor is None:
        return "estimate"
    settings = [processor.audio_padding, processor.projector_stride, processor.max_audio_len, processor.chat_template]
    if processor.audio_tail:  # absent without one, so that counts kept before there were tails stay known
        settings.append(processor.audio_tail)
    return json.dumps([*settings, processor.tokenizer.backend_tokenizer.to_str()], sort_keys=True)


def _foreign(index: CorpusIndex, rows: np.ndarray, processor: LlasoProcessor) -> tuple[str, int, int] | None:
    """Compare the `length` of some rows with this processor's.

    Returns:
        The id of the first row that differs, its `length` and the right one; None if all agree.
    """
    for row in rows.tolist():
        group = index.group_of(row)
        found: Row = index.read(group, COUNTED).slice(row - int(index.starts[group]), 1).to_pylist()[0]
        given, counted = index.known["length"][row].as_py(), _from_text(found, processor)
        if counted is None:
            audio = index.read(group, ["audio"])["audio"][row - int(index.starts[group])].as_py()
            counted = row_length({**found, "audio": audio}, processor)
        # Durations are kept to a tenth of a millisecond, which may move a clip's end by one token.
        if counted > 1 and abs(counted - given) > _clips_in(clean_messages(found)):
            return found["id"], given, counted
    return None


def _warn_of_foreign(row_id: str, given: int, counted: int, where: str) -> None:
    logger.warning(
        "%s: the `length` column was counted for another processor (row %s: %d tokens there, %d here); every row is "
        "counted anew. `llaso data build --processor MODEL` fills the column for the model that is to read it",
        where,
        row_id,
        given,
        counted,
    )
