"""Writes a corpus as the authors' released JSON files, row by row: its own rows, or those that were imported."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llaso_common.atomic_write import write_atomically
from llaso_common.output_folder import refuse_existing, replaced_folder

from . import corpus_folder
from .release import FOLDERS, OURS, ROWS_AT_ONCE, conversations_of, inside


def export_release(folder: Path, out: Path, overwrite: bool = False) -> int:
    """Write a corpus as released files: one for each source, task and format, or those it was imported from.

    Audio goes to `out`/audio/ as FLAC, unless the rows were imported: then their own voice paths are written. The
    folder appears when it is whole. `overwrite` replaces an earlier export.

    Returns:
        The number of rows.

    Raises:
        ValueError: the folder holds no corpus, or tasks that are not the paper's, `out` is not empty, or a row names
            a file outside of `out`.
    """
    shards = corpus_folder.shard_files(folder)
    if own := (corpus_folder.read_record(folder) or {}).get("tasks"):
        raise ValueError(
            f"{folder} has tasks of its own ({', '.join(own)}), which the authors' files cannot name: build it "
            "without them to export it"
        )
    refuse_existing(out, overwrite)
    if out.exists() and {entry.name for entry in out.iterdir()} - {*FOLDERS, "audio"}:
        raise ValueError(f"{out} holds more than released files, so --overwrite does not replace it")
    imported = "release" in pq.read_schema(shards[0]).names
    with replaced_folder(out) as part:
        rows = _write_files(part, _released_rows(shards) if imported else _own_rows(shards, part / "audio"))
    return rows


def _write_files(folder: Path, rows: Iterable[tuple[str, str, dict[str, Any]]]) -> int:
    """Write rows, each into its file, in the shape of that file; return their number."""
    shapes: dict[Path, str] = {}
    count = 0
    for count, (file, shape, released) in enumerate(rows, start=1):
        try:
            path = inside(folder, file)
        except ValueError as error:
            raise ValueError(f"row {count} comes from the file {file!r}: {error}") from error
        first = path not in shapes
        shapes[path] = shape
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as opened:
            opened.write({"list": ("[\n" if first else ",\n"), "lines": "", "object": ""}[shape])
            opened.write(json.dumps(released, ensure_ascii=False) + "\n" * (shape != "list"))
    for path, shape in shapes.items():
        if shape == "list":
            with path.open("a", encoding="utf-8") as opened:
                opened.write("\n]\n")
    return count


def _released_rows(shards: Sequence[Path]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield file, shape and content of every imported row, file by file and in the original order."""

    def read(files: Sequence[Path]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=["messages", "release"]):
                for row in batch.to_pylist():
                    kept = json.loads(row["release"])
                    if kept["fields"].get("conversations", ...) is None:
                        kept["fields"]["conversations"] = conversations_of(row["messages"])
                    yield kept["file"], kept["number"], kept["shape"], kept["fields"]

    groups: dict[str, list[Path]] = {}
    for shard in shards:
        groups.setdefault(corpus_folder.shard_name(shard).split("-of-")[0].rpartition("-")[0], []).append(shard)
    merged: Iterable[tuple[str, int, str, dict[str, Any]]] = heapq.merge(
        *map(read, groups.values()), key=lambda row: row[:2]
    )
    for file, _, shape, fields in merged:
        yield file, shape, fields


def _own_rows(shards: Sequence[Path], audio: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield file, shape and content of our own rows as released ones; their clips are written below `audio`."""
    folders = {modality: name for name, modality in FOLDERS.items()}
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                voices = []
                for clip in row["audio"]:
                    voices.append(f"{row['source']}/{clip['path']}")
                    if clip["bytes"]:
                        write_atomically(inside(audio, voices[-1]), clip["bytes"])
                yield (
                    f"{folders[row['modality']]}/{row['source']}_{row['task']}_{row['split']}.json",
                    "list",
                    {
                        "id": row["id"],
                        "voice": voices,
                        "conversations": conversations_of(row["messages"]),
                        "metadata": {name: row[name] for name in (*OURS, "duration", "target")},
                    },
                )
