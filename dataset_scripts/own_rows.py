"""Rows of a person's own recordings: manifests, Kaldi folders, lhotse's cuts, and folders of audio beside texts.

Every reader gives rows as plain dictionaries, with the file and line they come from. What a row means is decided in
`row_items`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import json_lines, lines, records, table
from .sources.base import Reject

AUDIO_SUFFIXES = frozenset(
    ".aac .aif .aiff .avi .flac .m4a .mkv .mov .mp3 .mp4 .mpga .oga .ogg .opus .wav .wave .webm .wma".split()
)
"""Endings of files that `folder:` takes for recordings."""
MANIFESTS = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz")
"""Endings of manifests; a Kaldi folder is one as well."""

_CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
"""Values of `type` by which a manifest's row is known to be a cut of lhotse's."""
KALDI_TABLES = ("wav.scp", "segments", "utt2spk", "spk2gender")
"""Files of a Kaldi folder that are read beside its `text`; all but the first may be missing."""


@dataclass(frozen=True, slots=True)
class FoundRow:
    """Holds one row, and where it stands.

    Args:
        where: file and line.
        values: the row.
        base: folder that relative paths of the row begin in.
        split: the split that the row's file is for; "" if the file does not say.
        name: what the row is called if it has no id; "" for its recording's name.
    """

    where: str
    values: Mapping[str, Any]
    base: Path
    split: str = ""
    name: str = ""


def manifest_rows(path: Path, split: str = "") -> Iterator[FoundRow | Reject]:
    """Yield the rows of a manifest: JSON lines or a JSON list (NeMo's and lhotse's among them), CSV, TSV, or Kaldi's.

    Raises:
        ValueError: the file is no such file.
    """
    if path.is_dir():
        yield from _kaldi_rows(path, split)
        return
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    one_a_line = path.name.removesuffix(".gz").endswith(".jsonl")
    for number, row in _table(path, delimiter) if delimiter else json_lines(path) if one_a_line else records(path):
        if isinstance(row, Reject):
            yield row
        elif row.get("type") in _CUTS:
            yield from _cut_rows(f"{path}:{number}", row, path.parent, split)
        else:
            yield FoundRow(f"{path}:{number}", row, path.parent, split)


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str] | Reject]]:
    """Yield the rows of a table.

    Raises:
        ValueError: its first line names no columns, or its quotes are not paired.
    """
    header = next((line for _, line in lines(path) if isinstance(line, str)), "")
    if delimiter not in header and (other := next((sign for sign in ";\t,|" if sign in header), "")):
        wanted = "commas" if delimiter == "," else "tabs"
        raise ValueError(f"{path}: its first line has {other!r} between columns; write {path.suffix} with {wanted}")
    for cell in header.split(delimiter):
        if Path(cell.strip(' "')).suffix.lower() in AUDIO_SUFFIXES:
            raise ValueError(
                f"{path}: its first line holds the recording {cell.strip()}; write a line of names above it"
            )
    return table(path, delimiter, strict=True)


def manifest_fault(path: Path) -> str:
    """Say why a path is no manifest, or ""."""
    if path.is_dir():
        missing = [name for name in ("wav.scp", "text") if not (path / name).is_file()]
        kaldi = f"{path} is a folder without {' and '.join(missing)}, so not Kaldi's"
        return f"{kaldi}. For audio beside texts say `folder: {path.name}`" if missing else ""
    if not path.is_file():
        return f"no such file: {path}"
    known = path.name.endswith(MANIFESTS)
    return "" if known else f"{path} is no manifest: its name ends in none of {', '.join(MANIFESTS)}"


# --- folders of audio beside texts ---------------------------------------------------------------------------------


def folder_rows(root: Path, split: str = "", texts: bool = True) -> Iterator[FoundRow | Reject]:
    """Yield a row for each recording below a folder, in the order of the names.

    A row has `audio`, the `text` of the file beside it that differs in the ending alone (`.txt`), and `folder`: the
    name of the folder it lies in, relative to the root.

    Args:
        root: the folder.
        split: of all rows.
        texts: whether a text without a recording is a `Reject`.
    """
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here, heard = Path(place), set[str]()
        within = here.relative_to(root).as_posix()
        for name in sorted(names):
            if name.startswith(".") or Path(name).suffix.lower() not in AUDIO_SUFFIXES:
                continue
            heard.add(Path(name).stem)
            row = {"audio": str((here / name).relative_to(root)), "folder": within}
            if (beside := here / f"{Path(name).stem}.txt").name in names:
                try:
                    row["text"] = " ".join(beside.read_text(encoding="utf-8-sig").split())
                except UnicodeDecodeError:
                    yield Reject(str(beside), "text is not UTF-8")
                    continue
            yield FoundRow(str(here / name), row, root, split)
        if texts:
            alone = (name for name in sorted(names) if name.endswith(".txt") and name[:-4] not in heard)
            yield from (Reject(str(here / name), "text without a recording") for name in alone)


# --- Kaldi ---------------------------------------------------------------------------------------------------------


def _kaldi_rows(folder: Path, split: str) -> Iterator[FoundRow | Reject]:
    """Yield the utterances of a Kaldi data folder, in the order of `text`.

    Rows have `id`, `audio`, `text`; `start` and `end` by `segments`; `speaker` by `utt2spk`; `gender` by `spk2gender`.
    The small tables are held in memory.

    Source: https://kaldi-asr.org/doc/data_prep.html
    """
    tables: dict[str, dict[str, str]] = {}
    for name in KALDI_TABLES:
        tables[name] = {}
        for where, key, value in _kaldi_table(folder / name):
            if isinstance(key, Reject):
                yield key
            elif key in tables[name]:
                yield Reject(where, "an id of an earlier line")
            else:
                tables[name][key] = value
    recordings, segments = tables["wav.scp"], tables["segments"]
    unread = dict.fromkeys(segments or recordings)
    read = set[str]()
    for where, id, text in _kaldi_table(folder / "text"):
        if isinstance(id, Reject):
            yield id
            continue
        if id in read:
            yield Reject(where, "an id of an earlier line")
            continue
        read.add(id)
        unread.pop(id, None)
        recording, *times = (segments.get(id, "").split() or [""]) if segments else [id]
        if recording not in recordings:
            yield Reject(where, "no recording")
            continue
        if segments and len(times) != 2:
            yield Reject(f"{folder / 'segments'}: {id}", "not {utterance} {recording} {start} {end}")
            continue
        said = recordings[recording]
        if said.endswith("|") or ".ark:" in said:
            yield Reject(where, "the recording is a command or lies in an archive: write it to a file")
            continue
        speaker = tables["utt2spk"].get(id, "")
        row = {"id": id, "audio": said, "text": text, "speaker": speaker, "gender": tables["spk2gender"].get(speaker)}
        row |= dict(zip(("start", "end"), times, strict=False))
        yield FoundRow(where, row, folder, split)
    yield from (Reject(f"{folder}: {id}", "recording without a transcript") for id in unread)


def _kaldi_table(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield where, key and value of each line; a `Reject` in place of the key of a line that cannot be read."""
    for number, line in lines(path) if path.exists() else ():
        where = f"{path}:{number}"
        if isinstance(line, Reject):
            yield where, line, ""
        elif line.strip():
            key, *value = line.split(maxsplit=1)
            yield where, key, "".join(value).strip()


# --- lhotse --------------------------------------------------------------------------------------------------------


def _cut_rows(where: str, cut: Mapping[str, Any], base: Path, split: str) -> Iterator[FoundRow | Reject]:
    """Yield a row for each supervision of one of lhotse's cuts.

    Rows have what the supervision has (`id`, `text`, `speaker`, `gender`, `language`, `custom`), `audio`, and `start`
    and `end` if the supervision is not the whole recording.

    Source: https://lhotse.readthedocs.io/en/latest/cuts.html
    """
    recording = cut.get("recording")
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(recording, dict) or not isinstance(sources, list):
        yield Reject(where, "a cut without a recording of its own: save its audio first (CutSet.save_audios)")
        return
    source = sources[0] if len(sources) == 1 and isinstance(sources[0], dict) else {}
    if source.get("type") != "file" or source.get("channels") not in ([0], None) or recording.get("transforms"):
        reason = "a cut of several files or channels, of a command, or transformed"
        yield Reject(where, f"{reason}: save its audio first (CutSet.save_audios)")
        return
    supervisions = cut.get("supervisions")
    if not isinstance(supervisions, list) or not supervisions:
        yield Reject(where, "a cut without supervisions")
        return
    for supervision in supervisions:
        try:
            start = float(cut.get("start", 0)) + float(supervision.get("start", 0))
            end = start + float(supervision["duration"])
            whole = start == 0 and abs(float(recording["duration"]) - end) < 1e-3
        except (AttributeError, KeyError, TypeError, ValueError):
            yield Reject(where, "a supervision whose start or duration is no number")
            continue
        times = {} if whole else {"start": start, "end": end}
        yield FoundRow(where, {**supervision, "audio": source.get("source"), **times} | _unset(times), base, split)


def _unset(times: Mapping[str, float]) -> dict[str, None]:
    """Return what of a supervision's own times must not be taken for those in the recording."""
    return {name: None for name in ("start", "end", "duration") if name not in times}
