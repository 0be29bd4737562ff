"""Opens one split of a corpus: a folder on this disk, or a data set on the Hub."""

from __future__ import annotations

import hashlib
import json
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

    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"{path} is a file; give the corpus folder that holds README.md and data/")
    if not folder.exists() and path.startswith((".", "/", "runs/")):
        raise FileNotFoundError(f"no corpus at {path}; build it with `llaso data build`, or name another folder")
    cache = None if streaming else _cache_of(folder)
    try:
        return datasets.load_dataset(
            path, config, split=split, streaming=streaming, revision=revision, cache_dir=cache
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"no corpus {path}: neither a folder here nor a data set on the Hub") from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{_broken_file(folder) or path} cannot be read: {error.__cause__ or error}; build or fetch it again"
        ) from error
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} (config {config or 'default'}, split {split}): {error}") from error


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
    state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    return str(Path(config.HF_DATASETS_CACHE) / "llaso" / name)
