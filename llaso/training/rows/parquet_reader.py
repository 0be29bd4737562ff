"""Reads Parquet files on this disk or on the Hub: whole columns, or whole row groups, and counts the bytes.

The input is a list of paths or `hf://` addresses. Only the bytes of what is asked for are read; nothing is copied.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

FOOTERS_KEPT = 64
"""Ends of files, which say where their row groups lie, that are kept in memory; of a large file, half a megabyte."""
FILES_AT_ONCE = 16
"""Files whose columns are read at the same time."""


class ParquetReader:
    """The Parquet files of one split.

    Args:
        files: paths or `hf://` addresses.

    Attributes:
        bytes_read: bytes of column chunks read so far, as they lie in the files.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self.bytes_read = 0
        self._counting = threading.Lock()
        self.footer = functools.lru_cache(FOOTERS_KEPT)(self._read_footer)

    def __reduce__(self) -> tuple[type[ParquetReader], tuple[list[str]]]:
        return ParquetReader, (self.files,)

    def schema(self, file: int) -> pa.Schema:
        """Return the columns of a file."""
        return self.footer(file).schema.to_arrow_schema()

    def read(self, file: int, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Read some columns of some row groups of a file; a column that it does not have is left out.

        Raises:
            ValueError: the file is broken.
        """
        footer = self.footer(file)
        there = footer.schema.to_arrow_schema().names
        columns = [name for name in columns if name in there]
        with _named(self.files[file]), self._opened(file) as source:
            table = pq.ParquetFile(source, metadata=footer, pre_buffer=True).read_row_groups(
                list(groups), columns=columns
            )
        with self._counting:
            self.bytes_read += sum(chunk_bytes(footer, group, columns) for group in groups)
        return table

    def read_all(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of every file, in the files' order; several files are read at the same time."""

        def read(file: int) -> pa.Table:
            return self.read(file, range(self.footer(file).num_row_groups), columns)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            yield from pool.map(read, range(len(self.files)))

    def _read_footer(self, file: int) -> pq.FileMetaData:
        with _named(self.files[file]), self._opened(file) as source:
            return pq.read_metadata(source)

    @contextlib.contextmanager
    def _opened(self, file: int) -> Iterator[Any]:
        name = self.files[file]
        if not name.startswith("hf://"):
            yield name
            return
        # Without a cache of its own, which would read on beyond what is asked for.
        with HfFileSystem().open(name, cache_type="none") as opened:
            yield opened


def chunk_bytes(footer: pq.FileMetaData, group: int, columns: Sequence[str]) -> int:
    """Return the bytes that some columns of a row group take in the file."""
    chunks = footer.row_group(group)
    each = map(chunks.column, range(chunks.num_columns))
    return sum(one.total_compressed_size for one in each if one.path_in_schema.split(".")[0] in columns)


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Name the file that cannot be read.

    Raises:
        ValueError: it is broken.
        OSError: the Hub did not give it.
    """
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise OSError(
            f"{file} could not be read from the Hub ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "earlier checkpoints are kept. Run the same command again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError) or isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{file} cannot be read: {str(error).strip()}; build or fetch it again") from error
