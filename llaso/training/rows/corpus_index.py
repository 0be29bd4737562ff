"""Holds what is known of every row of a split before a row is read: its length, task, format and row group.

Columns are read once and kept in a small file in datasets' cache folder, for each state of the corpus and each
processor; later runs, further processes and workers map that file into memory. Audio is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from llaso_common.atomic_write import atomic_path
from llaso_common.folder_lock import one_at_a_time
from llaso_common.open_corpus import parquet_files, state_of
from modeling_llaso.processing_llaso import LlasoProcessor

from .corpus_columns import checked_columns
from .parquet_reader import ParquetReader
from .row_lengths import count_lengths, counting_rule

logger = logging.getLogger(__name__)

KNOWN = ("task", "modality", "duration", "length")
"""Columns that are kept of every row."""


@dataclass(frozen=True)
class CorpusIndex:
    """The rows of a split.

    Attributes:
        reader: of its files.
        columns: those that training reads of a row.
        files: `(groups,)`, the file of each row group.
        numbers: `(groups,)`, its number in the file.
        starts: `(groups + 1,)`, the number of its first row in the split.
        known: `task`, `modality`, `duration` (seconds, 0 if missing) and `length` (tokens, 0 if missing) of every row.
        digest: of the rows' ids, in their order.
        folder: keeps the index and what is counted by it.
    """

    reader: ParquetReader
    columns: list[str]
    files: np.ndarray
    numbers: np.ndarray
    starts: np.ndarray
    known: pa.Table
    digest: str
    folder: Path

    def group_of(self, row: int) -> int:
        """Return the row group that holds a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a row group."""
        return self.reader.read(int(self.files[group]), [int(self.numbers[group])], columns)

    def lengths(
        self, processor: LlasoProcessor | None, where: str, workers: int = 0, wanted: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the expanded length of every row, `(rows,)`; counted once and kept.

        Args:
            processor: of the model that reads them; None trusts the column and estimates missing values.
            where: the corpus's name, for messages.
            workers: processes that count, if rows must be counted.
            wanted: numbers of the rows whose lengths are needed; all by default.
        """
        rule = hashlib.sha256(counting_rule(processor).encode()).hexdigest()[:16]
        kept = self.folder / f"lengths-{rule}.npy"
        with one_at_a_time(self.folder, logger.info):  # one process of a machine counts, the others read its result
            lengths = np.load(kept, mmap_mode="r") if kept.exists() else None
            needed = wanted if wanted is not None else slice(None)
            if lengths is None or not lengths[needed].all():
                lengths = count_lengths(self, processor, where, workers, wanted, lengths)
                with atomic_path(kept) as part, part.open("wb") as file:
                    np.save(file, lengths)
        return lengths


def open_index(path: str, split: str, config: str, revision: str | None = None) -> CorpusIndex:
    """Open a split by its columns, which are read if this state of the corpus has not been opened here before.

    Raises:
        FileNotFoundError: no such corpus.
        NoSuchSplit: no such split.
        ValueError: a file is broken, or a column is missing or of another type.
    """
    reader = ParquetReader(parquet_files(path, split, config, revision=revision))
    columns = checked_columns(datasets.Features.from_arrow_schema(reader.schema(0)), f"{path}, split {split}")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "llaso" / f"index-{state_of(reader.files)}"
    place = folder / "rows.arrow"
    with one_at_a_time(folder, logger.info):
        if not place.exists():
            table = _read_known(reader, f"{path}, split {split}")
            with (
                atomic_path(place) as part,
                pa.OSFile(str(part), "wb") as file,
                pa.ipc.new_file(file, table.schema) as w,
            ):
                w.write_table(table)
    known = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    about = json.loads(known.schema.metadata[b"llaso"])
    sizes = np.array(about["rows"], dtype=np.int64)
    return CorpusIndex(
        reader,
        columns,
        files=np.array(about["files"], dtype=np.int32),
        numbers=np.array(about["numbers"], dtype=np.int32),
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        known=known,
        digest=about["digest"],
        folder=folder,
    )


def _read_known(reader: ParquetReader, where: str) -> pa.Table:
    """Read the columns of every row, and where the row groups lie."""
    first = reader.schema(0).remove_metadata()
    groups: dict[str, list[int]] = {"files": [], "numbers": [], "rows": []}
    parts, digest = [], hashlib.sha256()
    for file, table in enumerate(reader.read_all(("id", *KNOWN))):
        if file and not reader.schema(file).remove_metadata().equals(first):
            checked_columns(datasets.Features.from_arrow_schema(reader.schema(file)), f"{where}, {reader.files[file]}")
        footer = reader.footer(file)
        for number in range(footer.num_row_groups):
            if rows := footer.row_group(number).num_rows:
                groups["files"].append(file)
                groups["numbers"].append(number)
                groups["rows"].append(rows)
        for chunk in table["id"].chunks:
            digest.update("".join(f"{row_id}\n" for row_id in chunk.to_pylist()).encode())
        parts.append(_plain(table))
    known = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    about = json.dumps(groups | {"digest": digest.hexdigest()})
    return known.replace_schema_metadata({"llaso": about})


def _plain(table: pa.Table) -> pa.Table:
    """Return the known columns in their types; a column that is missing is 0."""
    kinds = {"duration": pa.float64(), "length": pa.int32()}
    columns = {}
    for name in KNOWN:
        if name not in kinds:
            columns[name] = table[name].cast(pa.string()).dictionary_encode()
        elif name in table.column_names:
            columns[name] = table[name].cast(kinds[name], safe=False).fill_null(0)
        else:
            columns[name] = pa.chunked_array([np.zeros(len(table), kinds[name].to_pandas_dtype())])
    return pa.table(columns)
