"""Rows of a data set that `load_dataset` opens, on the Hub or in a folder, streamed file by file.

A data file is read once: its rows go to a listing and its audio to files named by their content, below a folder
that all corpora share. A listing is written beside its place and renamed into it, so that a walk that was killed goes
on with the first file that is not there. Audio is never decoded here, so neither torchcodec nor FFmpeg is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from llaso_common.atomic_write import atomic_path, write_atomically
from llaso_common.hub_errors import plain_errors
from llaso_common.open_corpus import loadable

from .files import json_lines
from .own_rows import FoundRow
from .sources.base import Reject

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_STRUCT = {"bytes": "binary", "path": "string"}
"""Keys of a value of an Audio column."""


@dataclass(frozen=True)
class UnpackedDataset:
    """A data set, and where its rows are kept once they have been read.

    Args:
        said: Hub id, or the folder or file as the block names it.
        config: of the data set; "" for its only one.
        place: the folder or file; None on the Hub.
        store: folder of the listings and the audio.
        record: `revision` (a commit's hash; "" of a folder), `splits` (their data files), `labels` (names of class
            labels by column).
    """

    said: str
    config: str
    place: Path | None
    store: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, said: str, base: Path, unpack: Path, config: str = "", revision: str = "") -> UnpackedDataset:
        """Look a data set up, or what an earlier look recorded: its revision is resolved once.

        Args:
            said: Hub id, or a path relative to `base`.
            base: folder of the sources file.
            unpack: folder in which each data set gets one of its own.
            config, revision: as `load_dataset` takes them; "" for the default.

        Raises:
            ValueError: there is no such data set, config or revision, or `datasets` cannot read it.
            ConnectionError: the Hub cannot be reached.
        """
        path = base / Path(said).expanduser()
        place = path if path.exists() else None
        if place is None and not HUB_ID.fullmatch(said):
            raise ValueError(f"dataset: no such folder: {path}; an id of the Hub is `owner/name`")
        key = json.dumps([said if place is None else str(place), config, revision, _state(place)])
        store = unpack / f"{PurePosixPath(said).name}-{sha256(key.encode()).hexdigest()[:12]}"
        file = store / "dataset.json"
        if not file.exists():
            write_atomically(file, json.dumps(_look_up(said, place, config, revision), indent=1))
        return cls(said, config, place, store, json.loads(file.read_text(encoding="utf-8")))

    def rows(self, split: str, into: str) -> Iterator[FoundRow | Reject]:
        """Yield the rows of one split of the data set, reading each data file that has no listing yet.

        Args:
            split: as the data set calls it.
            into: the split that its rows go into; "" lets the plan draw.
        """
        for number, name in enumerate(self.record["splits"][split]):
            listing = self.store / f"{split}-{number:05d}.jsonl"
            if not listing.exists():
                self._unpack(split, number, listing)
            for row_number, entry in json_lines(listing):
                where = f"{self.said}/{name}:{row_number}"
                if isinstance(entry, Reject):
                    yield Reject(where, entry.reason)
                else:
                    yield FoundRow(where, entry["row"], self.store, into, entry["name"])

    def _unpack(self, split: str, number: int, listing: Path) -> None:
        """Read one data file into its listing."""
        stream, labels = _stream(_builder(self.said, self.place, self.config, self.record["revision"]), split)
        count = len(self.record["splits"][split])
        shard = stream.shard(num_shards=stream.num_shards, index=number) if count > 1 else stream
        with atomic_path(listing) as part, part.open("w", encoding="utf-8") as file:
            try:
                for row in shard:
                    names = list[str]()
                    kept = {name: self._kept(value, labels.get(name), names) for name, value in row.items()}
                    entry = {"name": PurePosixPath(names[0]).stem if names else "", "row": kept}
                    file.write(json.dumps(entry, default=str) + "\n")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.said}: {split}, file {number + 1} of {count}: {_first_line(error)}"
                ) from error

    def _kept(self, value: Any, labels: list[str] | None, names: list[str]) -> Any:
        """Return a value as the listing holds it: audio as the name of its file, class labels by name."""
        if labels is not None and isinstance(value, int):
            return labels[value] if 0 <= value < len(labels) else None
        if isinstance(value, bytes):
            return self._stored(value, "")
        if isinstance(value, dict) and value.keys() <= _STRUCT.keys() and "path" in value:
            if value["path"]:
                names.append(value["path"])
            data = value.get("bytes")
            return self._kept(value["path"], None, names) if data is None else self._stored(data, value["path"] or "")
        if isinstance(value, dict):
            return {name: self._kept(each, None, names) for name, each in value.items()}
        if isinstance(value, list):
            return [self._kept(each, labels, names) for each in value]
        if isinstance(value, str) and value.startswith("hf://"):
            import fsspec

            names.append(value)
            with fsspec.open(value, "rb") as file:
                return self._stored(file.read(), value)
        if isinstance(value, str) and self.place is not None:
            return value.removeprefix(f"{self.place}/")
        return value

    def _stored(self, data: bytes, name: str) -> dict[str, str]:
        """Keep the bytes of a clip under their hash."""
        digest = sha256(data).hexdigest()
        path = f"audio/{digest[:2]}/{digest}{PurePosixPath(name).suffix}"
        if not (self.store / path).exists():
            write_atomically(self.store / path, data)
        return {"stored": path, "name": f"sha256:{digest}"}


def _state(place: Path | None) -> list[Any]:
    """Return what tells one state of a local data set from another: names, sizes and times of its files."""
    if place is None:
        return []
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return [[str(file.relative_to(place)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _look_up(said: str, place: Path | None, config: str, revision: str) -> dict[str, Any]:
    """Resolve the revision; list the data files by split, and the class labels."""
    resolved = ""
    if place is None:
        from huggingface_hub import HfApi

        with plain_errors(said):
            resolved = str(HfApi().dataset_info(said, revision=revision or None).sha)
    builder = _builder(said, place, config, resolved)
    splits: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for split, files in (builder.config.data_files or {}).items():
        stream, labels = _stream(builder, str(split))
        names = [PurePosixPath(str(file)).name for file in files]
        count = max(stream.num_shards, 1)
        splits[str(split)] = names if len(names) == count else [f"part-{number}" for number in range(count)]
    return {"dataset": said, "config": config, "revision": resolved, "splits": splits, "labels": labels}


def peek(
    said: str, place: Path | None, count: int
) -> tuple[list[str], dict[str, list[str]], list[dict[str, Any]], str]:
    """Return the splits of a data set, the names of its class labels, its first rows, and the licence on its card.

    Raises:
        ValueError: `datasets` cannot read it.
        ConnectionError: the Hub cannot be reached.
    """
    license = ""
    if place is None:
        from huggingface_hub import HfApi

        with plain_errors(said):
            info = HfApi().dataset_info(said)
        license = str(info.card_data.get("license") or "") if info.card_data else ""
    builder = _builder(said, place, "", "")
    splits = [str(split) for split in builder.config.data_files or {}]
    if not splits:
        raise ValueError(f"dataset: {said}: no data files")
    try:
        stream, labels = _stream(builder, splits[0])
    except FileNotFoundError as error:
        raise ValueError(f"dataset: {said}: no files that load_dataset reads ({_first_line(error)})") from error
    return splits, labels, list(stream.take(count)), license


def _builder(said: str, place: Path | None, config: str, revision: str) -> Any:
    """Open a data set by `datasets`, without reading its rows."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    try:
        if place is not None and place.is_file():
            kind = {".tar": "webdataset", ".parquet": "parquet"}.get(place.suffix)
            if kind is None:
                raise ValueError("no data set: a folder, a .parquet or a .tar file is one; for others say `manifest:`")
            return load_dataset_builder(kind, data_files={"train": str(place)})
        return load_dataset_builder(loadable(str(place or said)), config or None, revision=revision or None)
    except (DatasetsError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise ValueError(f"dataset: {said}: {_first_line(error)}") from error


def _stream(builder: Any, split: str) -> tuple[Any, dict[str, list[str]]]:
    """Return a split as a stream of undecoded rows, and the names of its class labels by column."""
    from datasets import Audio, ClassLabel, Features, List, Value

    # Encoding a value of an Audio column needs torchcodec, though it stays as it is; a plain struct does not.
    plain = Value("string") if builder.name == "audiofolder" else {name: Value(kind) for name, kind in _STRUCT.items()}

    def undecoded(feature: Any) -> Any:
        if isinstance(feature, Audio):
            return plain
        if isinstance(feature, dict):
            return {name: undecoded(each) for name, each in feature.items()}
        return List(undecoded(feature.feature)) if isinstance(feature, List) else feature

    stream = builder.as_streaming_dataset(split=split)
    if not stream.features:
        return stream, {}
    labels = {name: list(each.names) for name, each in stream.features.items() if isinstance(each, ClassLabel)}
    return stream.cast(Features({name: undecoded(each) for name, each in stream.features.items()})), labels


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
