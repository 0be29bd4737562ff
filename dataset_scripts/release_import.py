"""Reads the authors' released JSON into a corpus folder, row by row, without ever holding a file in memory.

Each released file becomes parts beside the corpus and then a record, so that a run that is killed, or stopped by a
broken file, goes on from the files that are done; the corpus appears when all are.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import alone_in
from llaso_common.schema import CORPORA, SPLITS, gives_answer
from llaso_common.tasks import PAPER_TASKS

from . import corpus_card, corpus_folder, token_counts
from .clips import encode, read_recording, seconds
from .files import json_lines
from .release import (
    FOLDERS,
    OURS,
    PLACEHOLDER,
    RELEASE_FEATURES,
    ROLES,
    ROWS_AT_ONCE,
    conversations_of,
    inside,
    parts_of,
)
from .sources.base import Recording, Reject

ROWS_PER_SHARD = 2_000
BOM = b"\xef\xbb\xbf"
LICENSE = "as its source"
_TASK_OF_FILE = (
    ("sentence_level", "PSSL"), ("word_level", "PSWL"), ("phoneme", "PR"), ("entity", "EE"), ("intent", "IP"),
    ("speechcommand", "SCR"), ("_eie_", "EIE"), ("_er_", "ER"), ("_sv_", "SV"), ("accent", "AC"), ("_ai_", "AC"),
    ("_age_", "AR"), ("gender", "SGC"), ("vocal_classification", "VSC"), ("instrument_classification", "IC"),
    ("music_source", "ISC"), ("pitch", "PP"), ("velocity", "VC"), ("synthetic_audio", "SSD"), ("asr", "ASR"),
    ("gpt", "AQA"), ("alpaca", "AQA"), ("dolly", "AQA"), ("orca", "AQA"), ("tigerbot", "AQA"), ("unnatural", "AQA"),
)  # fmt: skip
"""The task by a part of the file's name, in lower case between underscores; the first that fits."""


def import_release(
    folder: Path,
    out: Path,
    *,
    audio_root: Path | None,
    corpus: str = "instruct",
    processor: str = "",
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Read released files into a corpus folder; after a kill the same call continues after the finished files.

    Args:
        folder: holds the format folders, or the files themselves.
        out: the corpus folder to make.
        audio_root: what the voice paths are relative to; None leaves the audio out and keeps the paths.
        corpus: align, instruct or eval.
        processor: folder or Hub id of the checkpoint whose processor counts each row's `length`, if there is audio;
            "" leaves it at 0.
        rows_per_shard: rows a Parquet file holds.
        progress: called now and then with the rows read.

    Returns:
        The content of build.json: rows, counts, rejects.

    Raises:
        ValueError: there are no JSON files, a file is broken, no row can be used, or `out` holds a corpus already.
    """
    if corpus not in CORPORA:
        raise ValueError(f"no corpus {corpus!r}; there are {', '.join(CORPORA)}")
    if audio_root is not None and not audio_root.is_dir():
        raise ValueError(f"{audio_root}: there is no such folder of audio")
    files = _files(folder)
    reader = _Reader(corpus, audio_root, processor)
    if (out / "build.json").exists():
        raise ValueError(f"{out} holds a corpus already: choose another folder or delete it")
    with alone_in(out):
        return _import(files, out, reader, rows_per_shard, progress)


def _import(
    files: Mapping[str, Path], out: Path, reader: _Reader, rows_per_shard: int, progress: Callable[[int], None] | None
) -> dict[str, Any]:
    """Run `import_release` while the folder is locked."""
    work, placing = out / ".build" / "import", out / ".build" / "import" / "placing.json"
    asked = {name: reader.asked(file, rows_per_shard) for name, file in files.items()}
    if (out / "data").exists() and not (placing.exists() and json.loads(placing.read_text()) == asked):
        raise ValueError(f"{out} holds a corpus already, or part of one: choose another folder or delete it")
    records: list[dict[str, Any]] = []
    done = 0
    for name, file in files.items():
        record = work / f"{sha256(name.encode()).hexdigest()[:16]}.json"
        if not record.exists() or json.loads(record.read_text())["asked"] != asked[name]:
            parts = _Parts(work, record.stem, rows_per_shard)
            counted = _import_file(file, name, reader, parts, done, progress)
            write_atomically(record, json.dumps({"asked": asked[name], **counted}))
        records.append(json.loads(record.read_text()))
        done += records[-1]["read"]
    rows, lasting, reasons = Counter[str](), Counter[str](), Counter[str]()
    sources: dict[str, dict[str, Any]] = {}
    for each in records:
        rows.update(each["rows"])
        lasting.update(each["seconds"])
        reasons.update(each["reasons"])
        sources.update({name: _card(name, license) for name, license in each["sources"].items()})
    if not rows:
        said = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        shutil.rmtree(work)
        raise ValueError(f"nothing to import, no row can be used: {said or 'the files are empty'}")
    write_atomically(placing, json.dumps(asked))
    _place(out, work, records)
    shards = corpus_folder.digests(out)
    summary = {
        "fingerprint": corpus_folder.content_of(shards),
        "corpus": reader.corpus,
        "seed": 0,
        "speech": "the authors",
        "processor": reader.processor,
        "sources": sources,
        "manifest": reader.root is None,
        "dropped": {},
        "held_back": {},
        "rows": rows.total(),
        "hours": round(lasting.total() / 3600, 4),
        "counts": {name: {"rows": n, "hours": round(lasting[name] / 3600, 4)} for name, n in sorted(rows.items())},
        "bytes": sum(shard["bytes"] for shard in shards.values()),
        "rejects": dict(reasons.most_common()),
        "shards": shards,
    }
    with (work / "rejects.jsonl").open("wb") as listed:
        for each in records:
            with (work / each["rejects"]).open("rb") as some:
                shutil.copyfileobj(some, listed)
    (work / "rejects.jsonl").replace(out / "rejects.jsonl")
    write_atomically(out / "README.md", corpus_card.write(summary))
    write_atomically(out / "build.json", json.dumps(summary, indent=1, ensure_ascii=False))
    shutil.rmtree(work)
    return summary


def _files(folder: Path) -> dict[str, Path]:
    """Return the released files by their path in the release, which begins with the format folder if there is one."""
    above = f"{folder.resolve().name}/" if folder.resolve().name in FOLDERS else ""
    found = {
        f"{above}{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*.json*")
        if path.suffix in (".json", ".jsonl")
        and path.is_file()
        and (path.parent == folder or path.parent.name in FOLDERS)
    }
    if not found:
        raise ValueError(f"{folder}: no .json or .jsonl file in it or in {', '.join(FOLDERS)}")
    return dict(sorted(found.items()))


def _import_file(
    file: Path,
    name: str,
    reader: _Reader,
    parts: _Parts,
    before: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Read one file into parts; return its record."""
    rows, lasting, reasons = Counter[str](), Counter[str](), Counter[str]()
    sources: dict[str, str] = {}
    number = 0
    shape, found = _rows_of(file)
    with parts, parts.rejects.open("w", encoding="utf-8") as rejects:
        for number, released in found:
            row = reader.row(name, number, shape, released)
            if isinstance(row, str):
                reasons[row] += 1
                rejects.write(json.dumps({"source": _stem(name), "where": f"{name}:{number}", "reason": row}) + "\n")
            else:
                parts.add(row)
                group = "/".join((row["source"], row["task"], row["modality"], row["split"]))
                rows[group] += 1
                lasting[group] += row["duration"]
                sources[row["source"]] = row["license"]
            if progress and number % ROWS_AT_ONCE == 0:
                progress(before + number)
    counted = {"read": number, "rows": rows, "seconds": lasting, "reasons": reasons, "sources": sources}
    return {**counted, "parts": parts.written, "rejects": parts.rejects.name}


def _rows_of(file: Path) -> tuple[str, Iterator[tuple[int, dict[str, Any] | Reject]]]:
    """Return the shape of a file (a list, one object, or one object a line) and its numbered rows."""
    if file.suffix == ".jsonl":
        return "lines", json_lines(file)
    with file.open("rb") as opened:
        first = opened.read(1 << 12).removeprefix(BOM).lstrip()[:1]
    if first not in (b"[", b"{"):
        raise ValueError(f"{file} " + (f"is not JSON: it begins with {first!r}" if first else "is empty"))
    return ("list", _stream(file, "item")) if first == b"[" else ("object", _stream(file, ""))


def _stream(file: Path, prefix: str) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Yield numbered rows of a list, or of consecutive objects (usually one)."""
    import ijson

    number = 0
    with file.open("rb") as opened:
        if opened.read(len(BOM)) != BOM:
            opened.seek(0)
        values = ijson.items(opened, prefix, use_float=True, multiple_values=not prefix)
        try:
            for number, row in enumerate(values, start=1):
                yield number, row if isinstance(row, dict) else Reject(f"{file}:{number}", "not a JSON object")
        except (ijson.JSONError, UnicodeDecodeError) as error:
            said = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{file}: broken or truncated JSON in row {number + 1}, before byte {opened.tell():,} ({said}); "
                "copy the file again"
            ) from error


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.removesuffix("_test")


class _Reader:
    """Turns released rows into rows of this schema."""

    def __init__(self, corpus: str, audio_root: Path | None, processor: str) -> None:
        self.corpus, self.root, self.processor = corpus, audio_root, processor
        self._length = token_counts.TokenCounter(processor) if processor else None

    def asked(self, file: Path, rows_per_shard: int) -> list[Any]:
        """Return everything that the rows of a file depend on."""
        stat = file.stat()
        return [self.corpus, str(self.root), self.processor, rows_per_shard, stat.st_size, stat.st_mtime_ns]

    def row(self, name: str, number: int, shape: str, released: Mapping[str, Any] | Reject) -> dict[str, Any] | str:
        """Return row `number` of the file `name`, or why it cannot be read."""
        if isinstance(released, Reject):
            return released.reason
        turns, voice = released.get("conversations"), released.get("voice")
        if not isinstance(turns, list) or not all(map(_is_turn, turns)):
            return "conversations are missing, or are no list of {from, value}"
        messages: list[dict[str, Any]] = [
            {"role": ROLES[turn["from"]], "content": parts_of(turn["value"])} for turn in turns
        ]
        paths: list[Any] = [voice] if isinstance(voice, str) else voice if isinstance(voice, list) else []
        if not all(isinstance(path, str) for path in paths):
            return "voice is neither a path nor a list of paths"
        asked = sum(part["type"] == "audio" for message in messages for part in message["content"])
        if asked != len(paths):
            return f"{asked} {PLACEHOLDER} for {len(paths)} audio files"
        if not messages or messages[-1]["role"] != "assistant" or not turns[-1]["value"].strip():
            return "no answer"
        own = _own(released.get("metadata"))
        task = own.get("task") or _task(name)
        if not task:
            return "the file's name tells no task: rename it after one of the authors' files"
        # `null` stands for conversations that the messages give back, at their place among the fields.
        spared = json.dumps(conversations_of(messages)) == json.dumps(turns)
        fields = {key: None if key == "conversations" and spared else value for key, value in released.items()}
        clips: list[dict[str, Any]] = [{"bytes": None, "path": path} for path in paths]
        try:
            release = json.dumps({"file": name, "number": number, "shape": shape, "fields": fields})
            json.dumps(released, ensure_ascii=False).encode()
            if self.root is not None:
                for clip in clips:
                    clip["bytes"] = encode(read_recording(Recording(str(_audio(self.root, clip["path"])))))
            heard = [clip["bytes"] for clip in clips if clip["bytes"]]
            counted = self._length(messages, [seconds(clip) for clip in heard]) if self._length and heard else 0
        except UnicodeEncodeError:
            return "text is not Unicode (half of a surrogate pair)"
        except RecursionError:
            return "nested too deeply"
        except ValueError as error:
            return str(error)
        folder = PurePosixPath(name).parent.name
        answer = turns[-1]["value"]
        stated = released["metadata"].get("target") if own else None  # the answer alone, if it follows a transcript
        return {
            "id": f"{PurePosixPath(name).with_suffix('')}/{number:08d}",
            "corpus": self.corpus,
            "modality": FOLDERS.get(folder) or _modality(name, messages),
            "source": _stem(name),
            "split": "test" if self.corpus == "eval" or PurePosixPath(name).stem.endswith("_test") else "train",
            "messages": messages,
            "audio": clips,
            "target": stated if isinstance(stated, str) and gives_answer(answer, stated) else answer,
            "choices": [],
            "template_id": "",
            "style": "",
            "voice": "",
            "speaker": "",
            "duration": round(sum(map(seconds, heard)), 4),
            "length": counted,
            "license": LICENSE,
            "sha256": sha256(b"".join(heard)).hexdigest() if heard else "",
            "release": release,
            **own,
            "task": task,
            "category": PAPER_TASKS[task].category,
        }


def _is_turn(turn: Any) -> bool:
    """Tell whether a turn of a conversation has a known speaker and a text."""
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("from"), str)
        and turn["from"] in ROLES
        and isinstance(turn.get("value"), str)
    )


def _own(metadata: Any) -> dict[str, Any]:
    """Return the columns that our own export left in the metadata; none for rows from elsewhere."""
    if not isinstance(metadata, dict) or not all(name in metadata for name in OURS):
        return {}
    texts = [metadata[name] for name in OURS if name != "choices"]
    choices = metadata["choices"]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in (*texts, *choices)):
        return {}
    if metadata["task"] not in PAPER_TASKS or metadata["split"] not in SPLITS or "/" in metadata["source"]:
        return {}
    return {name: metadata[name] for name in OURS}


def _task(name: str) -> str:
    """Return the task that a file's name tells, or ""."""
    stem = f"_{PurePosixPath(name).stem.lower()}_"
    return next((task for part, task in _TASK_OF_FILE if part in stem), "")


def _audio(root: Path, path: str) -> Path:
    """Find the file of a released voice path.

    Raises:
        ValueError: it climbs out of the root, or there is none.
    """
    whole = inside(root, path)
    with contextlib.suppress(OSError):  # a name too long for a file
        if whole.is_file():
            return whole
    raise ValueError("there is no such file")


def _modality(name: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the format of a file outside the format folders, by its name or the position of the audio."""
    if "_end" in PurePosixPath(name).stem:
        return "audio"
    content = messages[0]["content"]
    return "audio_text" if len(content) > 1 and content[0]["type"] == "audio" else "text_audio"


def _card(source: str, license: str) -> dict[str, Any]:
    return {
        "title": f"LLaSO release: {source}",
        "license": license,
        "redistributable": False,
        "homepage": "https://arxiv.org/abs/2508.15418",
        "synthetic": False,
        "shared": [],
        "expected": {},
    }


class _Parts:
    """Writes the rows of one released file to Parquet, a series of files for each format, category and split."""

    def __init__(self, work: Path, name: str, rows: int) -> None:
        self._work, self._name, self._rows = work, name, rows
        self.rejects = work / f"{name}.rejects.jsonl"
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._open: dict[str, pq.ParquetWriter] = {}
        self._in_part: Counter[str] = Counter()
        self._close = contextlib.ExitStack()
        self.written: list[tuple[str, str]] = []
        """Series and file name of each part."""

    def add(self, row: dict[str, Any]) -> None:
        """Add one row."""
        series = f"{row['modality']}.{row['split']}-{row['category']}"
        waiting = self._waiting.setdefault(series, [])
        waiting.append(row)
        if len(waiting) == min(ROWS_AT_ONCE, self._rows - self._in_part[series]):
            self._write(series)

    def _write(self, series: str) -> None:
        """Write the buffered rows as a row group; close a full part."""
        if series not in self._open:
            name = f"{self._name}.{series}-{sum(known == series for known, _ in self.written):05d}.parquet"
            self.written.append((series, name))
            self._open[series] = self._close.enter_context(
                pq.ParquetWriter(
                    self._work / name,
                    RELEASE_FEATURES.arrow_schema,
                    compression="zstd",
                    use_content_defined_chunking=True,
                )
            )
        rows = self._waiting.pop(series)
        self._open[series].write_table(pa.Table.from_pylist(rows, schema=RELEASE_FEATURES.arrow_schema))
        self._in_part[series] += len(rows)
        if self._in_part[series] == self._rows:
            self._open.pop(series).close()
            self._in_part[series] = 0

    def __enter__(self) -> _Parts:
        self._work.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            for series in sorted(self._waiting):
                self._write(series)
        self._close.close()


def _place(out: Path, work: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Move all parts into their places as shards; a killed run may have moved some already."""
    parts: dict[str, list[Path]] = {}
    for record in records:
        for series, name in record["parts"]:
            parts.setdefault(series, []).append(work / name)
    for series, paths in parts.items():
        modality, rest = series.split(".")
        for index, part in enumerate(paths):
            place = out / "data" / modality / f"{rest}-{index:05d}-of-{len(paths):05d}.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            if part.exists():
                part.replace(place)
