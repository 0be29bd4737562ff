"""Reads the usual file formats of corpora, a line, a row or an object at a time.

What cannot be read of a file comes as a `Reject` with its line; a file that is no such file at all is a ValueError.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from .sources.base import Reject

_BROKEN = re.compile("[\udc80-\udcff]")
"""Characters that stand for bytes that are not UTF-8, after decoding with the error handler surrogateescape."""


def lines(path: Path) -> Iterator[tuple[int, str | Reject]]:
    """Yield numbered lines (from 1) of a text file, without line ends; a line that is not UTF-8 is a `Reject`.

    Raises:
        ValueError: a file `.gz` is not compressed by gzip, or ends too early.
    """
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, Reject(f"{path}:{number}", "text is not UTF-8")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its name ends in `.gz`; an error of gzip within the block names the file."""
    with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}; copy it again") from error


def table(
    path: Path, delimiter: str = ",", columns: Iterable[str] = (), *, strict: bool = False
) -> Iterator[tuple[int, dict[str, str] | Reject]]:
    """Yield numbered rows of a table with a header; quotes have a meaning in CSV and none in TSV.

    A row that is not UTF-8, or has more or fewer cells than the header, comes as a `Reject`.

    Args:
        path: the file.
        delimiter: between cells.
        columns: that the header must have.
        strict: refuse quotes that are not paired, which would swallow the rows after them.

    Raises:
        ValueError: a column of `columns` is not in the header, or the file is no table.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(
            file,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
            strict=strict,
        )
        try:
            header = next(reader, [])
            if absent := [column for column in columns if column not in header]:
                raise ValueError(f"{path}: no column {', '.join(absent)}; its header is {', '.join(header)}")
            if twice := sorted({column for column in header if header.count(column) > 1}):
                raise ValueError(f"{path}: its header names {', '.join(twice)} twice")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue  # an empty line
                if len(cells) != len(header):
                    yield reader.line_num, Reject(where, "not as many cells as the header has")
                elif _BROKEN.search("".join(cells)):
                    yield reader.line_num, Reject(where, "text is not UTF-8")
                else:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            remedy = "; write a quote within a cell twice, and quotes around the cell" if strict else ""
            raise ValueError(f"{path}:{reader.line_num}: {error}{remedy}") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict | Reject]]:
    """Yield numbered objects of a JSON-lines file; a broken line is a `Reject`."""
    for number, line in lines(path):
        if isinstance(line, Reject):
            yield number, line
        elif line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, Reject(f"{path}:{number}", f"not JSON: {error.msg}")
                continue
            except (ValueError, RecursionError):  # a number of thousands of digits, brackets a thousand deep
                yield number, Reject(f"{path}:{number}", "JSON that is too large to read")
                continue
            yield number, value if isinstance(value, dict) else Reject(f"{path}:{number}", "not a JSON object")


def records(file: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Yield numbered rows of a Parquet, JSON-lines or JSON-list file.

    A name that ends in `.jsonl` (or `.jsonl.gz`) says what it is; other JSON is told apart by its first bytes.
    """
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1_000)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
        except pa.ArrowException as error:
            raise ValueError(f"{file}: {error}") from error
        return
    with _opened(file) as opened:
        first = opened.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")[:1]
    if first != b"[" or ".jsonl" in file.suffixes[-2:]:
        yield from json_lines(file)
        return
    for number, row in enumerate(stream_json(file, "item"), start=1):
        yield number, row if isinstance(row, dict) else Reject(f"{file}:{number}", "not a JSON object")


def stream_json(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a large JSON file one by one, at an ijson prefix such as "audios.item".

    Raises:
        ValueError: the file is not JSON or not UTF-8, or ends too early.
    """
    import ijson

    return _streamed(path, lambda file: ijson.items(file, prefix, use_float=True))


def stream_json_object(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the members of a large JSON object one by one, each an object itself.

    Raises:
        ValueError: the file is not JSON or not UTF-8, ends too early, or is no object of objects.
    """
    import ijson

    name = ""
    for name, value in _streamed(path, lambda file: ijson.kvitems(file, "", use_float=True)):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {name} is no JSON object")
        yield name, value
    if not name:
        raise ValueError(f"{path}: no JSON object with anything in it")


def _streamed(path: Path, parse: Callable[[BinaryIO], Iterator[Any]]) -> Iterator[Any]:
    """Yield what ijson finds in a file, after a byte order mark; its errors name the file."""
    import ijson

    with _opened(path) as file:
        try:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            yield from parse(file)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            raise ValueError(f"{path} is not JSON in UTF-8: {said.splitlines()[0]}") from error
