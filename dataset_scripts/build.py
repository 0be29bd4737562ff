"""Builds a corpus folder from a plan: typed Parquet shards, their record, and a dataset card.

One shard is one task of a datatrove executor: on this machine, a Slurm cluster or Ray. A shard is written beside its
place and renamed into it with its record (digest, counts, what was set aside), so that a run may be killed anywhere
and started again, with any number of workers, and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llaso_common.atomic_write import part_of, this_machine, write_atomically
from llaso_common.folder_lock import alone_in
from llaso_common.schema import CORPORA, FEATURES, FEATURES_WITH_OWN_TASKS

from . import corpus_card, corpus_folder, draw, executors, leakage, token_counts
from .clips import ClipStore, seconds
from .conversations import sound_from_json
from .corpus_plan import PlannedRow, Settings, make_plan, reject_line, stratum_name
from .sources.base import Sound, Source

logger = logging.getLogger(__name__)

WRITTEN = ("data", "README.md", "build.json", "rejects.jsonl", "leakage.json")
"""Files and folders that a build writes into its folder, beside `.build`."""
ROW_GROUP = 100
"""Rows a Parquet row group holds: what a reader takes into memory at once."""
KEPT_OF_PLAN = (
    "fingerprint", "corpus", "seed", "limit", "speech", "processor", "sources", "labels", "offered", "evaluation",
    "dropped", "beyond_limit", "without_facts", "found", "settings", "tasks",
)  # fmt: skip
"""Keys of the plan that build.json repeats unchanged."""
KEYS = pa.schema(
    [("id", pa.string()), ("split", pa.string()), ("sha256", pa.string())]
    + [(kind, pa.list_(pa.string())) for kind in ("speaker", "sentence", "recording")]
)
"""Columns of the file beside each shard's record, which `leakage` compares."""


def build(
    corpus: str,
    sources: Sequence[Source],
    out: str | Path,
    *,
    clips: str | Path | None = None,
    workers: int = 1,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    against: Sequence[str | Path] = (),
    planning: Callable[[int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Path:
    """Build one corpus; continue an interrupted build; do nothing if the corpus is finished.

    Args:
        corpus: align, instruct or eval.
        sources: the corpora to read, each `at` its folder. Give the same sources, seed and row numbers to all three
            corpora: what is held out is computed from them.
        out: folder to make.
        clips: folder of the synthesized clips, to be shared between corpora; `out`/.build/clips by default.
        workers: processes at work. The result does not depend on it.
        executor: local, slurm or ray.
        executor_options: further arguments of the datatrove executor, e.g. Slurm's partition and time.
        against: corpora already built that the leakage report is to be checked against.
        planning: called now and then with the items read, before anything is built.
        progress: called now and then with the rows done and the rows there are.
        **settings: further fields of `corpus_plan.Settings`, such as seed, limit and voices.

    Returns:
        The folder `out`.

    Raises:
        ValueError: bad settings, a source folder of another layout, or another build in `out`.
        FolderBusy: another process works in `out`.
        OSError: the disk is full or not writable, or a worker was lost; whole shards stay, and the next run goes on
            from them.
    """
    if corpus not in CORPORA:
        raise ValueError(f"no corpus {corpus!r}; there are {', '.join(CORPORA)}")
    out = Path(out).absolute()  # the workers may run in other folders
    options = dict(executor_options or {})
    executors.check(executor, workers, options)
    chosen = Settings(corpus=corpus, **settings)
    length = token_counts.TokenCounter(chosen.processor) if chosen.processor else None
    work, others = out / ".build", [Path(other) for other in against]
    check_folder(out)
    with _told_when_full(out), alone_in(out):
        plan = make_plan(chosen, sources, work / "plan", planning)
        if not (out / "build.json").exists():
            store = Path(clips).absolute() if clips else work / "clips"
            job = ShardJob(str(out), str(store), plan["speech"], plan["max_seconds"], chosen.seed, length)
            with _watch(out, plan, progress):
                missing = _build_shards(job, plan, executor, workers, options)
            if missing:
                logger.warning("%s: %d of %d shards are still to be built", out, len(missing), len(plan["shards"]))
                return out
            _finish(out, plan)
        proof = out / "leakage.json"
        if not proof.exists() or not leakage.covers(json.loads(proof.read_text()), out, others):
            write_atomically(proof, json.dumps(leakage.compare(out, others), indent=1))
    if progress:
        progress(plan["rows"], plan["rows"])
    return out


def check_folder(out: Path) -> None:
    """Raise ValueError for a folder with files that a build there would take for its own, or write over."""
    found = [name for name in WRITTEN if (out / name).exists()]
    own = any((out / ".build" / name).exists() for name in ("plan/plan.json", "shards"))
    if found and not own:
        raise ValueError(f"{out} holds {', '.join(found)} that no build has made there: choose another output folder")


def _build_shards(
    job: ShardJob, plan: Mapping[str, Any], executor: str, workers: int, options: Mapping[str, Any]
) -> list[str]:
    """Build the missing shards; return those that Slurm is to build later.

    Raises:
        OSError: a shard could not be built.
    """
    work, names = Path(job.out) / ".build", [shard["name"] for shard in plan["shards"]]
    logs = work / "logs"
    if jobs := executors.queued(logs) if executor == "slurm" else []:
        logger.warning("%s: Slurm's job %s is not done; nothing is submitted again", job.out, ", ".join(jobs))
    else:
        _sweep(Path(job.out), anybodys=False)
        for rank, name in enumerate(names):
            # A shard's own record decides whether it is done; datatrove's mark has to agree with it.
            if not job.done(name):
                (logs / "completions" / f"{rank:05d}").unlink(missing_ok=True)
        executors.run(job, len(names), executor, workers, logs, options)
    missing = [name for name in names if not job.done(name)]
    if missing and executor != "slurm":
        raise OSError(
            f"{job.out}: {len(missing)} of {len(names)} shards could not be built, {missing[0]} first; "
            f"{logs / 'logs'} says why, and the same command goes on from the others"
        )
    return missing


def _sweep(out: Path, anybodys: bool) -> None:
    """Remove half-written files: those of processes of this machine that have ended; all of them if `anybodys`."""
    here = this_machine()
    for folder in (out, *out.glob("data/*"), out / ".build" / "plan", out / ".build" / "shards"):
        for part in folder.glob(".*.part"):
            host, _, thread = part.name.split(".")[-2].rpartition("-")
            if anybodys or (host == here and not Path("/proc", thread).exists()):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def _told_when_full(out: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"{out}: the disk is full: {error}. Make room, and the same command goes on from the shards that are whole"
        ) from error


@dataclass(frozen=True)
class ShardJob:
    """Builds the shard whose number is the rank; a datatrove executor runs it.

    Args:
        out: the corpus folder, with its plan.
        clips: folder of the clip store.
        speech: name of the speech backend.
        max_seconds: longest row.
        seed: of the order within a shard.
        length: counts a row's tokens; None leaves its `length` at 0.
    """

    out: str
    clips: str
    speech: str
    max_seconds: float
    seed: int
    length: token_counts.TokenCounter | None = None

    def record(self, name: str) -> Path:
        """Return the record of a finished shard."""
        return Path(self.out) / ".build" / "shards" / f"{name}.json"

    def done(self, name: str) -> bool:
        """Tell whether a shard is whole: its record exists, and its file is as large as the record says."""
        try:
            stated = json.loads(self.record(name).read_text())["bytes"]
            return corpus_folder.shard_file(Path(self.out), name).stat().st_size == stated
        except FileNotFoundError:
            return False

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Build shard number `rank` of the plan, unless its record is there."""
        folder = Path(self.out) / ".build" / "plan"
        plan = json.loads((folder / "plan.json").read_text())
        shard = plan["shards"][rank]
        if self.done(shard["name"]):
            return
        started, cpu = time.perf_counter(), time.process_time()
        rows, spares = self._planned(folder / "rows" / f"{shard['name']}.jsonl")
        built = _Shard(Path(self.out), shard["name"], plan["roots"], own_tasks="tasks" in plan)
        try:
            while rows:
                failed = self._build_group(rows[:ROW_GROUP], built)
                # Replacement rows come last, and may need replacements themselves.
                rows = rows[ROW_GROUP:] + built.stand_in(failed, spares)
            record = built.close()
        except BaseException:
            built.discard()
            raise
        record["seconds_to_build"] = round(time.perf_counter() - started, 3)
        record["cpu_seconds_to_build"] = round(time.process_time() - cpu, 3)
        write_atomically(self.record(shard["name"]), json.dumps(record, indent=1))

    def _planned(self, file: Path) -> tuple[list[PlannedRow], _Spares]:
        """Return the shard's rows in their drawn order, and their spares; a shard without rows has no file."""
        lines = file.read_bytes().splitlines() if file.exists() else []
        rows, spares = list[PlannedRow](), _Spares(list)
        for row in sorted(
            map(PlannedRow.parse, lines), key=lambda row: (draw.integer(self.seed, row.id, "order"), row.id)
        ):
            (spares[row.stratum] if row.spare else rows).append(row)
        return rows, spares

    def _build_group(self, rows: Sequence[PlannedRow], built: _Shard) -> list[PlannedRow]:
        """Build the rows of one row group: first speech that is missing, then row by row; gives those set aside."""
        store = _store(self.clips, self.speech)
        recipes: list[tuple[PlannedRow, dict[str, Any], list[tuple[Sound, ...]]]] = []
        for row in rows:
            content = json.loads(row.json)
            recipe = content.pop("clips")
            recipes.append((row, content, [tuple(map(sound_from_json, clip)) for clip in recipe]))
        store.prepare(sound for _, _, recipe in recipes for clip in recipe for sound in clip)
        group: list[dict[str, Any]] = []
        failed: list[PlannedRow] = []
        for row, content, recipe in recipes:
            try:
                if row.id in built.seen:
                    raise ValueError("duplicate id")
                built.seen.add(row.id)
                clips = [store.clip(clip, self.max_seconds) for clip in recipe]
                durations = [seconds(clip) for clip in clips]
                if sum(durations) > self.max_seconds:
                    raise ValueError(f"longer than {self.max_seconds:g} s")
                content["length"] = self.length(content["messages"], durations) if self.length else 0
            except ValueError as error:
                built.set_aside(row, str(error), [sound for clip in recipe for sound in clip])
                failed.append(row)
                continue
            names = [f"{row.id.replace('/', '_')}_{number}.flac" for number in range(len(clips))]
            content["audio"] = [{"bytes": clip, "path": name} for clip, name in zip(clips, names, strict=True)]
            content["duration"] = round(sum(durations), 4)
            content["sha256"] = sha256(b"".join(clips)).hexdigest()
            group.append(content)
            built.count(row, content)
        built.write(group)
        return failed


_Spares = defaultdict[tuple[str, ...], list[PlannedRow]]
"""Spares of a shard by stratum, the next one first."""


class _Shard:
    """Writes one Parquet file and keeps its record."""

    def __init__(self, out: Path, name: str, roots: Mapping[str, str], own_tasks: bool = False) -> None:
        self._schema = (FEATURES_WITH_OWN_TASKS if own_tasks else FEATURES).arrow_schema
        self.file = corpus_folder.shard_file(out, name)
        self.name = name
        self.seen: set[str] = set()
        self._part = part_of(self.file)
        self._keys = corpus_folder.keys_file(out, name)
        self._rows: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._key_rows: list[dict[str, Any]] = []
        self._rejects: list[str] = []
        self._roots = roots
        self._stood_in, self._short = Counter[str](), Counter[str]()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._keys.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = pq.ParquetWriter(
                self._part, self._schema, compression="zstd", use_content_defined_chunking=True
            )
        except OSError:
            self._part.unlink(missing_ok=True)
            raise

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append one row group."""
        if rows:
            self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def count(self, row: PlannedRow, content: Mapping[str, Any]) -> None:
        """Count a built row in the record."""
        name = row.group
        self._rows[name] += 1
        self._seconds[name] += content["duration"]
        self._key_rows.append({"id": row.id, "split": row.split, "sha256": content["sha256"], **row.keys})

    def set_aside(self, row: PlannedRow, reason: str, sounds: Sequence[Sound]) -> None:
        """Record a row that could not be built, with its reason and file."""
        logger.warning("%s set aside: %s", row.id, reason)
        self._rejects.append(reject_line(row.source, row.where or row.id, reason, sounds, self._roots[row.source]))

    def stand_in(self, failed: Sequence[PlannedRow], spares: _Spares) -> list[PlannedRow]:
        """Return spares of the same strata for rows that could not be built; record those without a spare."""
        found = []
        for row in failed:
            if spares[row.stratum]:
                found.append(spares[row.stratum].pop(0))
                self._stood_in[row.held_group] += 1
            elif row.split != "train":
                self._short[stratum_name(row.stratum)] += 1
        return found

    def close(self) -> dict[str, Any]:
        """Rename the file into its place and return its record."""
        self._writer.close()
        keys = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._key_rows, schema=KEYS), keys, compression="zstd")
        write_atomically(self._keys, keys.getvalue().to_pybytes())
        with self._part.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        self._part.replace(self.file)
        return {
            "name": self.name,
            "sha256": digest,
            "bytes": self.file.stat().st_size,
            "rows": dict(sorted(self._rows.items())),
            "seconds": {name: round(value, 3) for name, value in sorted(self._seconds.items())},
            "rejects": self._rejects,
            "stood_in": dict(self._stood_in),
            "short": dict(self._short),
        }

    def discard(self) -> None:
        """Delete the unfinished file."""
        try:
            self._writer.close()
        except OSError:
            logger.debug("%s: closing an unfinished shard failed", self.name)
        self._part.unlink(missing_ok=True)


@functools.cache
def _store(clips: str, speech: str) -> ClipStore:
    """Return this process's clip store: a speech model is loaded once, not once for each shard."""
    return ClipStore(clips, speech)


@contextlib.contextmanager
def _watch(out: Path, plan: Mapping[str, Any], progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Report progress every second while shards are being built, by the records that have appeared."""
    if progress is None:
        yield
        return
    done, records = threading.Event(), out / ".build" / "shards"

    def look() -> None:
        while not done.wait(1.0):
            progress(sum(s["rows"] for s in plan["shards"] if (records / f"{s['name']}.json").exists()), plan["rows"])

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _finish(out: Path, plan: Mapping[str, Any]) -> None:
    """Sum up the records: rejects.jsonl, the dataset card and build.json; drop what was only needed to build."""
    work = out / ".build"
    records = [json.loads((work / "shards" / f"{shard['name']}.json").read_text()) for shard in plan["shards"]]
    rejects = (work / "plan" / "rejects.jsonl").read_text(encoding="utf-8")
    rejects += "".join(line for record in records for line in record["rejects"])
    write_atomically(out / "rejects.jsonl", rejects)
    rows, seconds, stood_in, short = (
        sum((Counter(record[name]) for record in records), Counter())
        for name in ("rows", "seconds", "stood_in", "short")
    )
    held_back = {name: left for name, count in plan["held_back"].items() if (left := count - stood_in[name])}
    reasons = Counter(json.loads(line)["reason"] for line in rejects.splitlines())
    left_out = (held_back.values(), plan["dropped"].values(), reasons.values())
    assert plan["offered"] == rows.total() + plan["beyond_limit"] + sum(map(sum, left_out)), "a row is unaccounted for"
    summary = {
        **{key: plan[key] for key in KEPT_OF_PLAN if key in plan},
        "held_out": {
            **plan["held_out"],
            "built": sum(count for name, count in rows.items() if not name.endswith("/train")),
            "short": dict(Counter(plan["held_out"]["short"]) + short),
        },
        "held_back": held_back,
        "rows": rows.total(),
        "hours": round(seconds.total() / 3600, 4),
        "bytes": sum(record["bytes"] for record in records),
        "counts": {
            name: {"rows": count, "hours": round(seconds[name] / 3600, 4)} for name, count in sorted(rows.items())
        },
        "rejects": dict(reasons),
        "shards": {record["name"]: {"sha256": record["sha256"], "bytes": record["bytes"]} for record in records},
    }
    write_atomically(out / "README.md", corpus_card.write(summary))
    write_atomically(out / "build.json", json.dumps(summary, indent=1, ensure_ascii=False))
    shutil.rmtree(work / "plan" / "rows", ignore_errors=True)
    _sweep(out, anybodys=True)
