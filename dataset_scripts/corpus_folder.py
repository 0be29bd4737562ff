"""Describes a finished corpus on disk: its shards, its record `build.json`, and what of it may be published.

A shard is named twice: `text_audio.train-linguistic-00000-of-00001` in records is the file
`data/text_audio/train-linguistic-00000-of-00001.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

NEEDED = ("corpus", "fingerprint", "sources", "counts", "rows", "shards")
"""Keys that every build.json has."""


def shard_files(folder: Path) -> list[Path]:
    """Return the corpus's Parquet files, sorted.

    Raises:
        ValueError: there are none, or they are not those that build.json names.
    """
    files = sorted(folder.glob("data/*/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no corpus: no data/<format>/*.parquet")
    if deeper := sorted(set(folder.glob("data/**/*.parquet")) - set(files)):
        raise ValueError(f"{deeper[0]} is no part of this corpus: shards lie in data/<format>/. Move it away")
    if record := read_record(folder):
        there, named = {shard_name(file): file for file in files}, record["shards"]
        if strange := sorted(set(there) - set(named)):
            raise ValueError(
                f"{there[strange[0]]} is no part of this corpus: build.json does not name it. Move it away"
            )
        if missing := sorted(set(named) - set(there)):
            raise ValueError(
                f"{shard_file(folder, missing[0])} is missing, which build.json names: "
                "copy the corpus whole, or build it again"
            )
    return files


def shard_file(folder: Path, name: str) -> Path:
    """Return the path of a shard: "audio.train-semantic-…" is data/audio/train-semantic-….parquet."""
    modality, rest = name.split(".", 1)
    return folder / "data" / modality / f"{rest}.parquet"


def shard_name(file: Path) -> str:
    """Return a shard's name in records."""
    return f"{file.parent.name}.{file.stem}"


def keys_file(folder: Path, name: str) -> Path:
    """Return the file in which `llaso data build` lists what a shard's rows must not share with other parts."""
    return folder / ".build" / "shards" / f"{name}.keys.parquet"


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of build.json, or None if there is none.

    Raises:
        ValueError: it is not JSON, or no record of a corpus.
    """
    file = folder / "build.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; copy it again, or build the corpus again") from error
    if not isinstance(record, dict) or (missing := [name for name in NEEDED if name not in record]):
        said = f"has no {', '.join(missing)}" if isinstance(record, dict) else "is no JSON object"
        raise ValueError(f"{file} is no record of a corpus: it {said}")
    return record


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Compute the entry `shards` of build.json: the files' digests and sizes."""
    shards = {}
    for path in sorted(folder.glob("data/*/*.parquet")):
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        shards[shard_name(path)] = {"sha256": digest, "bytes": path.stat().st_size}
    return shards


def content_of(shards: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest the digests of all shards."""
    return sha256(json.dumps(sorted((name, shard["sha256"]) for name, shard in shards.items())).encode()).hexdigest()


def closed_sources(record: Mapping[str, Any]) -> list[str]:
    """Names and terms of the sources with rows in a corpus whose audio may not be published again."""
    present = {name.rsplit("/", 3)[0] for name in record["counts"]}
    return [
        f"{name} ({source['license']})"
        for name, source in record["sources"].items()
        if name in present and not source["redistributable"]
    ]
