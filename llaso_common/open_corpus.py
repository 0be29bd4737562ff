"""Opens one split of a corpus: a folder on this disk, or a data set on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def open_split(
    path: str, split: str, config: str | None = None, *, revision: str | None = None, streaming: bool = False
) -> Any:
    """Open one split; its clips are not decoded.

    Args:
        path: a corpus folder, or the id of a data set on the Hub.
        split: its name.
        config: one of the corpus's configs, e.g. a modality format; its default one by default.
        revision: branch, tag or commit on the Hub.
        streaming: read it from its beginning instead of preparing it on disk.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset` if streamed.

    Raises:
        FileNotFoundError: there is no such folder or data set.
        ValueError: the path is a file, there is no such config or split, or a file of the corpus is broken.
    """
    import datasets
    import pyarrow as pa

    folder = _folder_or_id(path)
    cache = None if streaming else _cache_of(folder)
    try:
        return datasets.load_dataset(
            loadable(path), config, split=split, streaming=streaming, revision=revision, cache_dir=cache
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"no corpus {path}: neither a folder here nor a data set on the Hub") from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{_broken_file(folder) or path} cannot be read: {error.__cause__ or error}; build or fetch it again"
        ) from error
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} (config {config or 'default'}, split {split}): {error}") from error


class NoSuchSplit(ValueError):
    """A corpus has no split of this name."""


def parquet_files(path: str, split: str, config: str | None = None, *, revision: str | None = None) -> list[str]:
    """Name the Parquet files of one split, in their order, without reading or copying any.

    Args:
        path: a corpus folder, or the id of a data set on the Hub.
        split: its name.
        config: one of the corpus's configs; its default one by default.
        revision: branch, tag or commit on the Hub.

    Returns:
        Paths on this disk, or `hf://` addresses that hold the commit, so that they name the same bytes for ever.

    Raises:
        FileNotFoundError: there is no such folder or data set.
        NoSuchSplit: there is no such split.
        ValueError: the path is a file, there is no such config, or the corpus is not Parquet.
    """
    import datasets
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    _folder_or_id(path)
    try:
        builder = datasets.load_dataset_builder(loadable(path), config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"no corpus {path}: neither a folder here nor a data set on the Hub") from error
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} (config {config or 'default'}): {error}") from error
    if not isinstance(builder.config, ParquetConfig) or not builder.config.data_files:
        raise ValueError(
            f"{path} is not Parquet, the only form that training reads; "
            'datasets.load_dataset(…, split="train").to_parquet("data/train-0.parquet") writes it'
        )
    files: dict[str, list[str]] = {str(name): list(names) for name, names in builder.config.data_files.items()}
    if split not in files:
        raise NoSuchSplit(f"{path} (config {config or 'default'}): no split {split}; it has {', '.join(files)}")
    return files[split]


def state_of(files: Sequence[str]) -> str:
    """Digest what tells one state of files from another: paths, and of local ones sizes and times of change."""
    state: list[list[Any]] = []
    for file in files:
        if file.startswith("hf://"):
            state.append([file])
        else:
            found = Path(file).stat()
            state.append([str(Path(file).resolve()), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def loadable(path: str) -> str:
    """Return what `load_dataset` takes for a folder or an id.

    A folder named `text`, `json` or `parquet` in the current folder needs `./`: datasets has loaders of these names.
    """
    return os.path.join(os.curdir, path) if os.sep not in path and os.path.isdir(path) else path


def _folder_or_id(path: str) -> Path:
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"{path} is a file; give the corpus folder that holds README.md and data/")
    if not folder.exists() and path.startswith((".", "/", "runs/")):
        raise FileNotFoundError(f"no corpus at {path}; build it with `llaso data build`, or name another folder")
    return folder


def _broken_file(folder: Path) -> Path | None:
    """Return the first Parquet file whose end, which lists its contents, cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(folder.rglob("*.parquet")):
        try:
            pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError):
            return file
    return None


def _cache_of(folder: Path) -> str | None:
    """Return a cache folder of its own for each state of a local corpus; datasets' usual one for a Hub id.

    datasets 5.2 distinguishes local folders by their base name alone: for a rebuilt corpus, or one of the same name
    elsewhere, it would return the rows of the first.
    """
    if not folder.is_dir():
        return None
    from datasets import config

    files = sorted(path for path in (*folder.rglob("*.parquet"), folder / "README.md") if path.is_file())
    return str(Path(config.HF_DATASETS_CACHE) / "llaso" / state_of(list(map(str, files))))
