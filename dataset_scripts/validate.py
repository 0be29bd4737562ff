"""Validates a corpus: checks every row's audio, text, labels and separation of splits.

Reads a corpus folder row by row; writes `validation.json`, `validation.html` and `bad_rows.jsonl`, and, if asked to,
takes bad rows out of their shards into `.build/set_aside/`. A bad row never ends the run. All files are made beside
the corpus and moved into it at the end, so that a run that is killed leaves the corpus as it was.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llaso_common.atomic_write import write_atomically
from llaso_common.end_with_parent import end_with_parent
from llaso_common.folder_lock import alone_in
from llaso_common.schema import FEATURES, TASK_DEFINITION
from llaso_common.tasks import Task, task_of

from . import checks, corpus_card, corpus_folder, draw, leakage, separation, validation_page
from .disagreement import Disagreements, transcribe_rows
from .files import json_lines
from .listeners import Listener
from .sources.base import Reject

LONGEST_BIN = 60
"""Seconds from which all rows count as equally long."""
MOST_LABELS = 500
"""Labels of a task that are counted one by one."""
BAD_ROWS_SHOWN = 20
PROGRESS_EVERY = 100
ROWS_AT_ONCE = 100
LISTING = "bad_rows.jsonl"
HEARD = "heard.jsonl"
"""File with a listener's transcript of each row and its error rate against the row's text."""


def validate(
    folder: Path,
    *,
    against: Sequence[Path] = (),
    set_aside: bool = False,
    examples: int = 12,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    listener: Listener | None = None,
    max_wer: float | None = None,
    clips_at_once: int = 16,
    listening: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Check a corpus.

    Args:
        folder: a corpus folder.
        against: other corpora, whose rows of other splits must share no audio, speaker, voice, sentence or recording
            with this one's; they are only read. `leakage.json` is written anew.
        set_aside: take bad rows out of their shards; by default they are only listed.
        examples: rows with a player on the page, drawn by hash.
        workers: processes that check the audio, a shard each. The result does not depend on it.
        seed: of that draw.
        progress: called now and then with the rows checked and the rows there are.
        listener: transcribes the rows of transcript tasks, whose recordings are then compared with their texts; what
            it heard is kept, so that an interrupted run goes on. None compares nothing.
        max_wer: a row whose transcript differs from its text by a higher word error rate is bad.
        clips_at_once: of the listener's batches.
        listening: called now and then with the recordings heard and those there are.

    Rows set aside also leave `build.json`'s counts and the card. Rows that an earlier run set aside stay listed and
    counted, so that a second run reports the same.

    Returns:
        The content of validation.json, and `found`: how many rows this run found bad.

    Raises:
        ValueError: a folder holds no corpus or half a build, a file in it is no whole Parquet file of this schema, or
            there is nothing to listen to.
        OSError: the disk is full, or a worker was lost; the corpus is as it was.
    """
    if examples < 0 or workers < 1:
        raise ValueError(f"{examples} examples, {workers} workers: give 0 or more examples and 1 or more workers")
    for each in (folder, *against):
        corpus_folder.shard_files(each)
        if (each / ".build" / "plan" / "plan.json").exists() and not (each / "build.json").exists():
            raise ValueError(f"{each} is not built to its end: give its `llaso data build` command again first")
    with alone_in(folder):
        moves = _Moves(folder)
        moves.finish()  # what a killed run had decided
        try:
            heard = None
            if listener is not None:
                if (corpus_folder.read_record(folder) or {}).get("manifest"):
                    raise ValueError(f"{folder} is a manifest without audio: leave --listen out")
                kept = transcribe_rows(folder, listener, _rows, clips_at_once, listening)
                heard = Disagreements(listener.identity, kept, max_wer, examples, moves.place(HEARD))
            return _validate(folder, against, set_aside, workers, moves, _Tally(examples, seed), progress, heard)
        finally:
            moves.finish()


def _validate(
    folder: Path,
    against: Sequence[Path],
    set_aside: bool,
    workers: int,
    moves: _Moves,
    tally: _Tally,
    progress: Callable[[int, int], None] | None,
    heard: Disagreements | None,
) -> dict[str, Any]:
    """Do the work of `validate`, while no other process changes the folder."""
    files = corpus_folder.shard_files(folder)
    record = corpus_folder.read_record(folder)
    manifest, sources = bool(record and record.get("manifest")), record and record["sources"]
    shards = corpus_folder.digests(folder)
    apart = _look_through(folder, against)
    total = sum(pq.read_metadata(file).num_rows for file in files)
    listing, keys = _Listing(folder, moves), separation.KeyReader(folder)
    columns = [name for name in FEATURES if name != "audio" or manifest]
    judge = functools.partial(_judge, manifest=manifest, sources=sources)
    for file, bad in zip(files, _each(judge, files, workers), strict=True):
        name = corpus_folder.shard_name(file)
        for index, row in _rows(file, columns):
            if index not in bad and row and (shared := apart.faults_of(row, keys.keys_of(name, row))):
                bad[index] = shared
            if heard and index not in bad and row and (fault := heard.fault(row, file, index)):
                bad[index] = [fault]
            tally.count(None if index in bad else row, file, index)
            if index in bad:
                place = {"file": str(file.relative_to(folder)), "row": index, "id": row["id"] if row else None}
                listing.add({**place, "reasons": bad[index], "set_aside": set_aside})
            if progress and (tally.rows % PROGRESS_EVERY == 0 or tally.rows == total):
                progress(tally.rows, total)
        if bad and set_aside:
            _take_out(folder, moves, file, bad)
            with moves.place(file.relative_to(folder)).open("rb") as kept:
                shards[name] = {"sha256": file_digest(kept, "sha256").hexdigest(), "bytes": kept.seek(0, 2)}
    listing.close()
    if heard:
        heard.close()
    report = {
        "rows": tally.good if set_aside else tally.rows,
        "bad": 0 if set_aside else listing.found,
        "set_aside": listing.earlier + listing.found * set_aside,
        "reasons": dict(listing.reasons.most_common()),
        "notes": _notes(record, manifest, [folder, *against]),
        "manifest": manifest,
        "against": [other.resolve().name for other in against],
        **tally.report(),
        "content": corpus_folder.content_of(shards),
        **({"listening": heard.report()} if heard else {}),
    }
    counted = {name: entry["rows"] for name, entry in record["counts"].items()} if record else {}
    if record and set_aside and (shards != record["shards"] or counted != tally.groups):
        corrected = _corrected(record, tally, report["set_aside"], shards)
        moves.write("README.md", corpus_card.write(corrected))
        moves.write("build.json", json.dumps(corrected, indent=1, ensure_ascii=False))
    moves.write("validation.json", json.dumps(report, indent=1, ensure_ascii=False))
    worst = [(_row(file, index), found, text) for file, index, found, text in heard.worst()] if heard else []
    page = validation_page.write(folder.resolve().name, report, tally.examples(), listing.first, tally.names, worst)
    moves.write("validation.html", page)
    moves.decide()
    moves.finish()
    if against and not _without_keys([folder, *against]):
        proof = json.dumps(leakage.compare(folder, against), indent=1)
        write_atomically(folder / "leakage.json", proof)
    return {**report, "found": listing.found}


def _look_through(folder: Path, against: Sequence[Path]) -> separation.Separation:
    """Return what the rows of the corpus share with one another and with those of other corpora."""
    apart = separation.Separation()
    for each, found in _keyed(folder):
        apart.note(each, found)
    apart.settle()
    for other in against:
        if other.resolve() == folder.resolve():
            raise ValueError(f"{other} is the corpus itself: name others after --against")
        apart.compare(other.resolve().name, ((row["split"], found) for row, found in _keyed(other)))
    return apart


def _judge(file: Path, manifest: bool, sources: Mapping[str, Any] | None) -> dict[int, list[str]]:
    """Return the rows of a shard that are bad by themselves, and why."""
    bad: dict[int, list[str]] = {}
    for index, row in _rows(file):
        faults = ["text is not UTF-8"]
        if row is not None:
            shard = corpus_folder.shard_name(file)
            faults = list(checks.faults_of(row, manifest=manifest, shard=shard, sources=sources))
        if faults:
            bad[index] = faults
    return bad


def _each(
    judge: Callable[[Path], dict[int, list[str]]], files: Sequence[Path], workers: int
) -> Iterator[dict[int, list[str]]]:
    """Return what `judge` says of each file, in order.

    Raises:
        OSError: a worker was lost.
    """
    if workers == 1:
        yield from map(judge, files)
        return
    # Not forked: a fork copies the locks of threads that datasets and pyarrow may have started.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            yield from pool.map(judge, files)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker was lost, perhaps for want of memory, and the corpus is as it was: take fewer --workers"
            ) from error


class _Moves:
    """Files made beside a corpus, and moved into it when all are there; a run that was killed while moving goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._work = folder, folder / ".build" / "validation"
        self._new, self._decided = self._work / "new", self._work / "decided"

    def place(self, name: str | Path) -> Path:
        """Return the path for the new version of a file of the corpus."""
        path = self._new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, text: str) -> None:
        """Write the new version of a text file."""
        self.place(name).write_text(text, encoding="utf-8")

    def decide(self) -> None:
        """Record on disk that all new versions are complete, so that `finish` moves them."""
        self._decided.touch()

    def finish(self) -> None:
        """Move the new versions into their places if that was decided; drop them if not."""
        if self._decided.exists():
            for path in sorted(path for path in self._new.rglob("*") if path.is_file()):
                target = self._folder / path.relative_to(self._new)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        shutil.rmtree(self._work, ignore_errors=True)


class _Listing:
    """The list of bad rows, begun with those that an earlier run set aside; written as they are found."""

    def __init__(self, folder: Path, moves: _Moves) -> None:
        self.found = self.earlier = 0
        self.first: list[Mapping[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        self._file = moves.place(LISTING).open("w", encoding="utf-8")
        for number, entry in json_lines(folder / LISTING) if (folder / LISTING).exists() else ():
            if isinstance(entry, Reject):
                raise ValueError(f"{folder / LISTING}:{number}: {entry.reason}; mend or delete the file")
            if entry["set_aside"]:
                self.earlier += 1
                self._write(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """List a row that this run found bad."""
        self.found += 1
        self._write(entry)

    def close(self) -> None:
        """Close the list."""
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if len(self.first) < BAD_ROWS_SHOWN:
            self.first.append(entry)
        self.reasons.update({reason.split(":")[0] for reason in entry["reasons"]})
        self._file.write(json.dumps(entry) + "\n")


class _Tally:
    """Counts of the good rows, and the few of them to be shown."""

    def __init__(self, examples: int, seed: int) -> None:
        self.rows = self.good = 0
        self.groups: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._hours: Counter[str] = Counter()
        self._bins: Counter[int] = Counter()
        self._labels: dict[str, Counter[str]] = defaultdict(Counter)
        self.names: dict[str, str] = {}
        self._wanted, self._seed = examples, seed
        self._examples: list[tuple[int, str, Path, int]] = []

    def count(self, row: dict[str, Any] | None, file: Path, index: int) -> None:
        """Count a row of a file; None for a bad one."""
        self.rows += 1
        if row is None:
            return
        self.good += 1
        group = "/".join((row["source"], row["task"], row["modality"], row["split"]))
        self.groups[group] += 1
        self.seconds[group] += row["duration"]
        self._hours[row["source"]] += row["duration"] / 3600
        self._bins[int(min(row["duration"], LONGEST_BIN))] += 1
        task = task_of(row)
        assert task is not None, "a row of an unknown task is bad"
        self.names[task.code] = task.name
        labels, label = self._labels[task.code], _label(row, task)
        labels[label if label in labels or len(labels) < MOST_LABELS else "(further labels)"] += 1
        drawn = draw.integer(self._seed, row["id"], "example")
        if len(self._examples) < self._wanted or self._wanted and drawn < self._examples[-1][0]:
            self._examples = sorted([*self._examples, (drawn, row["id"], file, index)])[: self._wanted]

    def examples(self) -> list[dict[str, Any]]:
        """Return the rows whose hash is lowest."""
        return [_row(file, index) for _, _, file, index in self._examples]

    def report(self) -> dict[str, Any]:
        """Return hours by source, rows by format and split, by length in seconds, and rows by label of each task."""
        formats: Counter[str] = Counter()
        for group, count in sorted(self.groups.items()):
            formats[", ".join(group.rsplit("/", 2)[1:])] += count
        names = [f"{n} to {n + 1}" for n in range(LONGEST_BIN)] + [f"{LONGEST_BIN} or more"]
        return {
            "hours": {source: round(value, 4) for source, value in sorted(self._hours.items())},
            "formats": dict(formats),
            "seconds": {names[n]: self._bins[n] for n in range(max(self._bins, default=-1) + 1)},
            "labels": {task: _in_order(counter) for task, counter in sorted(self._labels.items())},
        }


def _label(row: Mapping[str, Any], task: Task) -> str:
    """Return what an answer counts as: a label of a closed set, the ten that a number lies in, or a free answer."""
    if not row["choices"] and task.numbers and task.holds(row["target"]):
        ten = int(float(row["target"]) // 10) * 10
        return f"{ten} to {ten + 9}"
    return row["target"] if row["choices"] or task.answer == "closed" else validation_page.OPEN


def _in_order(labels: Counter[str]) -> dict[str, int]:
    """Labels that begin with a number from low to high, and before them all others from often to seldom."""
    number = {label: int(found[0]) if (found := re.match(r"\d+", label)) else -1 for label in labels}
    return dict(sorted(labels.items(), key=lambda entry: (number[entry[0]], -entry[1], entry[0])))


def _keyed(folder: Path) -> Iterator[tuple[dict[str, Any], separation.Keys]]:
    """Yield every row of a corpus and its keys; without audio, and without rows that lack something."""
    record, reader = corpus_folder.read_record(folder), separation.KeyReader(folder)
    columns = (*separation.COLUMNS, *["audio"] * bool(record and record.get("manifest")))
    for file in corpus_folder.shard_files(folder):
        for _, row in _rows(file, columns):
            if row is not None and not any(checks.missing(row)):
                yield row, reader.keys_of(corpus_folder.shard_name(file), row)


def _rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield numbered rows of a shard, a hundred in memory at a time; None for one whose text is not UTF-8.

    Raises:
        ValueError: the file is no whole Parquet file, or has other columns.
    """
    try:
        found = pq.read_schema(file)
        for field in FEATURES.arrow_schema:
            at = found.get_field_index(field.name)
            if at < 0 or found.field(at).type != field.type:
                there = found.field(at).type if at >= 0 else "missing"
                raise ValueError(
                    f"{file} is no shard of this schema: column {field.name} is {there}, not {field.type}"
                )
        index = 0
        read = [*columns, *([TASK_DEFINITION] if TASK_DEFINITION in found.names else [])] if columns else None
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=read):
            yield from enumerate(_decoded(batch), start=index)
            index += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is no shard of this schema: {error}; copy it or build it again") from error


def _row(file: Path, index: int) -> dict[str, Any]:
    """Return one row of a shard, with its audio."""
    shard = pq.ParquetFile(file)
    for group in range(shard.num_row_groups):
        size = shard.metadata.row_group(group).num_rows
        if index < size:
            return shard.read_row_group(group).slice(index, 1).to_pylist()[0]
        index -= size
    raise IndexError(index)


def _decoded(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for at in range(batch.num_rows) for row in _decoded(batch.slice(at, 1))]


def _take_out(folder: Path, moves: _Moves, file: Path, bad: Collection[int]) -> None:
    """Write a shard without its bad rows, and these to the ones set aside before; the same for its keys."""
    place = file.relative_to(folder)
    aside = Path(".build", "set_aside", *place.parts[1:])
    shard, before, kept_ids = pq.ParquetFile(file), folder / aside, set()
    options = {"compression": "zstd", "use_content_defined_chunking": True}
    with (
        pq.ParquetWriter(moves.place(place), shard.schema_arrow, **options) as kept,
        pq.ParquetWriter(moves.place(aside), shard.schema_arrow, **options) as taken,
    ):
        for batch in pq.ParquetFile(before).iter_batches(batch_size=ROWS_AT_ONCE) if before.exists() else ():
            taken.write_batch(batch)
        index = 0
        for batch in shard.iter_batches(batch_size=ROWS_AT_ONCE):
            good = np.array([index + at not in bad for at in range(batch.num_rows)])
            for writer, mask in ((kept, good), (taken, ~good)):
                if mask.any():
                    writer.write_batch(batch.filter(pa.array(mask)))
            kept_ids.update(batch.filter(pa.array(good)).column("id").to_pylist())
            index += batch.num_rows
    keys = corpus_folder.keys_file(folder, corpus_folder.shard_name(file))
    if keys.exists():
        table = pq.read_table(keys)
        mask = pa.array([id in kept_ids for id in table.column("id").to_pylist()], pa.bool_())
        pq.write_table(table.filter(mask), moves.place(keys.relative_to(folder)), compression="zstd")


def _corrected(
    record: Mapping[str, Any], tally: _Tally, set_aside: int, shards: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return build.json for the rows that are left."""
    hours = {name: tally.seconds[name] / 3600 for name in tally.groups}
    return {
        **record,
        "rows": tally.good,
        "hours": round(sum(hours.values()), 4),
        "bytes": sum(shard["bytes"] for shard in shards.values()),
        "counts": {name: {"rows": n, "hours": round(hours[name], 4)} for name, n in sorted(tally.groups.items())},
        "set_aside": set_aside,
        "shards": shards,
    }


def _without_keys(folders: Sequence[Path]) -> list[Path]:
    """Return the corpora whose rows' sentences and recordings are not known here."""
    return [
        folder
        for folder in folders
        if not all(
            corpus_folder.keys_file(folder, corpus_folder.shard_name(file)).exists()
            for file in corpus_folder.shard_files(folder)
        )
    ]


def _notes(record: Mapping[str, Any] | None, manifest: bool, folders: Sequence[Path]) -> list[str]:
    """List what a publisher should know besides."""
    notes = ["a manifest: there is no audio to check"] * manifest
    closed = corpus_folder.closed_sources(record) if record else []
    notes += [f"may not be published with audio: {', '.join(closed)}"] * bool(closed)
    notes += [
        f"sentences and recordings of {folder.resolve().name} are not known here, since `llaso data build` did not "
        "make it in this place: audio, speakers and voices were compared"
        for folder in _without_keys(folders)
    ]
    return notes
