"""A first block of `sources.yaml` for data without a description: guessed from its first rows, and marked so.

Nothing is written and no audio is kept: a data set on the Hub is read as a stream, as far as its first rows.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import dataset_rows
from .own_rows import AUDIO_SUFFIXES, MANIFESTS, FoundRow, folder_rows, manifest_fault, manifest_rows
from .row_items import SPLIT_OF, USUAL, column_paths, pick
from .source_blocks import open_license

ROWS = 200
"""Rows looked at."""
SHOWN = 5
"""Rows printed."""
NAMES = {
    "audio": "audio audio_filepath audio_path path file filename file_name wav flac mp3 ogg clip recording",
    "text": "text transcript transcription sentence normalized_text raw_text text_tn txt words",
    "messages": "messages conversations conversation",
    "question": "question instruction prompt query",
    "answer": "answer response output completion",
    "speaker": "speaker speaker_id spk spk_id client_id speaker_name reader",
    "gender": "gender sex",
    "start": "start offset begin_time start_time begin",
    "end": "end end_time",
    "duration": "duration",
    "split": "split",
    "id": "id utt_id segment_id",
}
"""Usual names of each kind of column. If a table has several of them, the first is taken."""
MOST_LABELS = 12
"""Different values up to which a column may hold labels."""


def inspect(said: str) -> str:
    """Return a block for a path or an id of the Hub, as YAML whose comments show rows and name what is unknown.

    Raises:
        ValueError: there is nothing by this name, or it cannot be read.
        ConnectionError: the Hub cannot be reached.
    """
    kind, block, rows, license = _first_rows(said)
    if not rows:
        raise ValueError(f"{said}: no row can be read; `llaso data plan` says why, once a block names it")
    paths = [
        path for path in dict.fromkeys(path for row in rows for path in column_paths(row)) if _is_column(rows, path)
    ]
    columns = _guess(rows, paths)
    tasks = _tasks(columns)
    needed = {name: path for name, path in columns.items() if name in USUAL or name in tasks.values()}
    named = {name: path for name, path in needed.items() if path not in USUAL.get(name, (name,))}
    block |= {"columns": named} if named and kind != "folder" else {}
    block |= {"tasks": tasks} if tasks else {}
    block |= {"license": license} if license else {}
    name = re.sub(r"\W+", "_", Path(said.rstrip("/")).name.split(".")[0], flags=re.ASCII).strip("_").lower() or "own"
    name = name if name[0].isalpha() else f"own_{name}"
    head = f"# A guess from the first {len(rows)} rows of {said}: check it against the rows below."
    lines = [head, yaml.safe_dump({"sources": {name: block}}, sort_keys=False, allow_unicode=True).rstrip()]
    lines += ["# Rows:", *(f"#   {_shown(row)}" for row in rows[:SHOWN])]
    lines += ["# Not known:", *(f"#   {each}" for each in _unknown(rows, paths, columns, tasks, license))]
    comments = [" ".join(line.splitlines()) for line in (head, *lines[2:])]  # a line break in a value ends no comment
    return "\n".join([comments[0], lines[1], *comments[1:]]) + "\n"


def _first_rows(said: str) -> tuple[str, dict[str, Any], list[Mapping[str, Any]], str]:
    """Return the kind of source, the beginning of its block, its first rows, and its licence if its card says one."""
    path = Path(said).expanduser()
    if path.is_file() and path.name.endswith(MANIFESTS) or (path / "wav.scp").is_file():
        if fault := manifest_fault(path):
            raise ValueError(fault)
        return "manifest", {"manifest": str(path.absolute())}, _values(manifest_rows(path)), ""
    if path.is_dir() and _is_folder(path):
        return "folder", {"folder": str(path.absolute())}, _values(folder_rows(path)), ""
    place = path.absolute() if path.exists() else None
    if place is None and not dataset_rows.HUB_ID.fullmatch(said):
        raise ValueError(f"no such file or folder: {said}; an id of the Hub is `owner/name`")
    splits, labels, rows, license = dataset_rows.peek(said, place, ROWS)
    block: dict[str, Any] = {"dataset": said if place is None else str(place)}
    if len(splits) > 1 and any(split.casefold() not in SPLIT_OF for split in splits):
        block["splits"] = {}
        for split in splits:
            word = re.split(r"[^a-z]", split.casefold())[0]
            block["splits"].setdefault(SPLIT_OF.get(word, "train"), []).append(split)
    if labels:
        known = {(name, number): label for name, names in labels.items() for number, label in enumerate(names)}
        rows = [{name: known.get((name, value), value) if name in labels else value for name, value in row.items()}
                for row in rows]  # fmt: skip
    return "dataset", block, list[Mapping[str, Any]](rows), license


def _values(found: Iterator[Any]) -> list[Mapping[str, Any]]:
    return [row.values for row in itertools.islice(found, ROWS) if isinstance(row, FoundRow)]


def _is_folder(path: Path) -> bool:
    """Tell whether a folder holds recordings with a text beside one of them."""
    files = itertools.islice((file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES), ROWS)
    return any(file.with_suffix(".txt").exists() for file in files)


def _guess(rows: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> dict[str, str]:
    """Return the column of each thing that is called as usual, nested ones after the others."""
    last = {path: path.rpartition(".")[2].casefold() for path in sorted(paths, key=lambda path: path.count("."))}
    found = {}
    for name, words in NAMES.items():
        of_word = (path for word in words.split() for path in last if last[path] == word)
        column = next((path for path in of_word if name != "audio" or _is_audio(rows, path)), None)
        if column is not None:
            found[name] = column
    return found


def _is_column(rows: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Tell whether a path is a column of its own, and not the bytes or the path of a clip."""
    outer, _, inner = path.rpartition(".")
    return not (outer and inner in ("bytes", "path") and _is_audio(rows, outer))


def _is_audio(rows: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Tell whether a column's first value is a recording: a clip, or a path with the ending of one."""
    value = next((value for row in rows if (value := pick(row, path)) is not None), None)
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, Mapping):
        return value.keys() <= {"bytes", "path"}
    return isinstance(value, bytes) or (isinstance(value, str) and Path(value).suffix.lower() in AUDIO_SUFFIXES)


def _tasks(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the tasks that the columns can answer."""
    tasks = {"AQA": "messages"} if "messages" in columns else {}
    if not tasks and "question" in columns and "answer" in columns:
        tasks["AQA"] = "answer"
    if "audio" in columns and "text" in columns and not tasks:
        tasks["ASR"] = "text"
    return tasks | ({"SGC": "gender"} if "audio" in columns and "gender" in columns else {})


def _unknown(
    rows: Sequence[Mapping[str, Any]],
    paths: Sequence[str],
    columns: Mapping[str, str],
    tasks: Mapping[str, str],
    license: str,
) -> Iterator[str]:
    """Say what the rows did not tell, and which columns may hold labels."""
    if not license:
        yield "the licence: until `license:` states it, the audio is not published"
    elif not open_license(license):
        yield f"whether {license} lets the audio be published: it counts as closed"
    if not tasks:
        yield f"the tasks: say which column answers which, as `tasks: {{ASR: column}}`; found: {', '.join(paths)}"
    if "audio" not in columns and tasks.get("AQA") is None:
        spoken = "; with `spoken: true` the build speaks the texts" if "text" in columns else ""
        yield f"the audio: no column names recordings{spoken}"
    if "speaker" not in columns:
        yield "the speaker: without one, rows are held out by sentence, and a voice can be in training and evaluation"
    for path in paths:
        seen = {str(value) for row in rows if isinstance(value := pick(row, path), str | int) and value != ""}
        if path not in columns.values() and 1 < len(seen) <= MOST_LABELS:
            yield f"whether {path} is a label: {', '.join(sorted(seen))}"


def _shown(row: Mapping[str, Any]) -> str:
    """Return a row in one line, long values and audio shortened."""

    def short(value: Any) -> Any:
        if isinstance(value, bytes):
            return f"<{len(value):,} bytes>"
        if isinstance(value, Mapping):
            return {name: short(each) for name, each in value.items()}
        if isinstance(value, list):
            return [short(each) for each in value[:4]]
        return value[:60] + "…" if isinstance(value, str) and len(value) > 60 else value

    return json.dumps(short(row), ensure_ascii=False, default=str)
