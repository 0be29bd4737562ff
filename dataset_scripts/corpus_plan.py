"""Plans a build before any audio is read: which rows, in which corpus, split and shard.

One walk over the sources' metadata draws the evaluation rows by quota and writes validation and training rows to
spools on disk. Then the validation rows are drawn from those that share nothing with the evaluation, and training gets
what shares no speaker, sentence or recording with either, dealt into shards by hash. Memory holds the held-out rows
and one buffer, however long the corpora are.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

from llaso_common.atomic_write import write_atomically
from llaso_common.schema import SPLITS
from llaso_common.tasks import TASKS, Task

from . import conversations, draw
from .interleaved import MIX, Interleaver
from .quotas import allocate
from .release import PLACEHOLDER
from .size_estimate import FLAC_BYTES_PER_SECOND, Estimate, unfit
from .sources.base import Fact, Item, Recording, Reject, Sound, Source
from .synthesize import voices

EVAL_ROWS = 15_044
"""The benchmark's size as the paper states it."""
VALIDATION_ROWS = 2_000
ROWS_PER_SHARD = 2_000
ASR_IN_INSTRUCT = 0.1
"""The part of the transcribed recordings that LLaSO-Instruct repeats."""
VERSION = 4
"""Version of the plan: to be increased by any change that makes the same sources and seed give other rows."""
READ_PER_LIMITED_ROW = 40
"""Under a limit, so many items of each source are read for each row allowed, should it need them."""
SPARES = 2
"""Spares of a stratum beyond one for every other row drawn from it."""
PROGRESS_EVERY = 1_000
INSTRUCT_SHARES = ("transcript_first", "interleaved")
"""Settings that add to Instruct alone; at 0 they are not part of what a plan says of itself."""
_BUFFER_BYTES = 32 << 20


def read_under(limit: int) -> str:
    """Say how much of a source is read under a limit, which can be why rows are missing."""
    most = limit * READ_PER_LIMITED_ROW
    return f"limit {limit:,} reads at most the first {most:,} items of each source; raise it if the rows come later"


@dataclass(frozen=True)
class Settings:
    """Holds every setting that decides what is built, apart from the sources.

    Args:
        corpus: align, instruct or eval.
        seed: of every draw.
        eval_rows: rows of the evaluation, all sources together.
        validation_rows: rows of the validation split.
        limit: at most so many rows in all: the evaluation's, or a tenth for validation and the rest for training, the
            first of each source, in equal shares. Of each source no more is read than it takes, and what is held
            out is drawn from that, so give all three corpora the same limit. None for no limit.
        rows_per_shard: about so many rows go into one file.
        speech: the speech backend, see `synthesize.backend`.
        voices: synthetic voices by split; no voice may be in two of them.
        max_seconds: longest row; longer ones are set aside.
        processor: folder or Hub id of the checkpoint whose processor counts each row's `length`; "" leaves it at 0.
        tasks: tasks beside the paper's, with all their instructions.
        transcript_first: share of Instruct's training rows in which the answer follows the transcript of what is
            heard.
        interleaved: share of the transcribed items that also stand in a row of written and spoken sentences by
            turns, of the task MIX, in Instruct's training rows.
    """

    corpus: str
    seed: int = 0
    eval_rows: int = EVAL_ROWS
    validation_rows: int = VALIDATION_ROWS
    limit: int | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    speech: str = "espeak"
    voices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_seconds: float = conversations.MAX_SECONDS
    processor: str = ""
    tasks: Sequence[Task] = ()
    transcript_first: float = 0.0
    interleaved: float = 0.0

    def __post_init__(self) -> None:
        lowest = {"eval_rows": 0, "validation_rows": 0, "rows_per_shard": 1, "limit": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if not (name == "limit" and value is None) and (type(value) is not int or value < low):
                raise ValueError(f"{name}: {value!r} is not a whole number of {low} or more")
        if not isinstance(self.max_seconds, int | float) or not self.max_seconds > 0:
            raise ValueError(f"max_seconds: {self.max_seconds!r} is not a number above 0")
        for name in INSTRUCT_SHARES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name}: {value!r} is no share; give a number between 0 and 1")
        # One sources file serves all three corpora, and what it says of Instruct must not make other builds invalid.
        if self.corpus != "instruct":
            for name in INSTRUCT_SHARES:
                object.__setattr__(self, name, 0.0)
        if self.interleaved and MIX not in self.tasks:
            object.__setattr__(self, "tasks", (*self.tasks, MIX))

    def fingerprint(self, sources: Sequence[Source]) -> str:
        """Return a hash of the settings and of the sources' names, folders and options."""
        return sha256(json.dumps([VERSION, self.stated(sources)], sort_keys=True).encode()).hexdigest()

    def stated(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Return the settings and the sources' names, folders and options, as plain JSON."""
        kept = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("tasks", *INSTRUCT_SHARES)
        }
        kept |= {name: getattr(self, name) for name in INSTRUCT_SHARES if getattr(self, name)}
        if self.tasks:
            kept["tasks"] = self.stated_tasks()
        read = {source.name: [str(source.root), dict(source.options)] for source in sources}
        return json.loads(json.dumps({**kept, "sources": read}, default=str))

    def stated_tasks(self) -> dict[str, dict[str, Any]]:
        """Return the tasks beside the paper's as plain JSON, by code, with their instructions."""
        return {task.code: task.record() | {"instructions": list(map(list, task.instructions))} for task in self.tasks}


def corpora_of(source: Source, item: Item, fact: Fact, seed: int) -> tuple[str, ...]:
    """Return the corpora of a fact: transcripts go to Align and a tenth of them to Instruct, the rest to Instruct."""
    if fact.corpora:
        return fact.corpora
    if fact.task != "ASR":
        return ("instruct", "eval")
    again = draw.unit(seed, f"{source.name}/{item.id}", "again") < ASR_IN_INSTRUCT
    return ("align", "instruct", "eval") if again else ("align", "eval")


def split_of(source: Source, item: Item, seed: int) -> str:
    """Return an item's split: the corpus's own, else drawn by speaker, else by sentence, else by the item itself."""
    if item.split:
        return item.split
    if item.speaker and "speaker" not in source.shared:
        key = item.speaker
    elif item.sentence and "sentence" not in source.shared:
        key = sentence_key(item.sentence)
    else:
        key = item.id
    point = draw.unit(seed, f"{source.name}:{key}", "split")
    if point < source.eval_share:
        return "test"
    return "validation" if point < source.eval_share * 1.5 else "train"


def sentence_key(sentence: str) -> str:
    """Return a sentence without case, punctuation and spacing: equal keys are the same sentence."""
    return "".join(char for char in sentence.casefold() if char.isalnum())


def make_plan(
    settings: Settings, sources: Sequence[Source], folder: Path, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Plan a corpus, or return the plan that exists already.

    Args:
        settings: what to build.
        sources: the corpora to read, each `at` its folder.
        folder: where the plan goes: `plan.json`, and `rows/` with one file a shard.
        progress: called now and then with the items read.

    Returns:
        The content of plan.json: shards, counts, quotas, what is dropped, held back or rejected, estimated hours and
        bytes.

    Raises:
        ValueError: the folder holds another plan, a manifest has changed since it was planned, a source folder is laid
            out otherwise, this process knows a task with another definition, or nothing is left to build.
    """
    TASKS.declare(settings.tasks, "the build's settings")
    fingerprint = settings.fingerprint(sources)
    listed = {str(path): _digest(path) for source in sources for path in source.manifests}
    done = folder / "plan.json"
    if done.exists():
        plan = json.loads(done.read_text())
        if plan["fingerprint"] != fingerprint:
            raise ValueError(
                f"{folder} holds another build ({_difference(plan.get('stated', {}), settings.stated(sources))}): "
                "choose another output folder or delete this one"
            )
        planned = plan["manifests"]
        if changed := [path for path in {**planned, **listed} if planned.get(path) != listed.get(path)]:
            raise ValueError(
                f"{changed[0]} is not as it was when {folder} was planned: choose another output folder or delete "
                "this one"
            )
        return plan
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan = {
        "fingerprint": fingerprint,
        "stated": settings.stated(sources),
        "manifests": listed,
        **_Planner(settings, sources, folder, progress).run(),
    }
    write_atomically(done, json.dumps(plan, indent=1))
    return plan


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe how the settings of two plans differ."""
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not there or not differing:
        return "planned by another version of this program"
    return ", ".join(
        name
        if isinstance(here.get(name, there.get(name)), dict)
        else f"{name} {there.get(name)}, not {here.get(name)}"
        for name in differing
    )


@dataclass
class _Keys:
    """Collects what a set of rows contains: speakers (and voices), sentences, recordings."""

    speaker: set[str] = field(default_factory=set)
    sentence: set[str] = field(default_factory=set)
    recording: set[str] = field(default_factory=set)

    def add(self, keys: Mapping[str, Sequence[str]]) -> None:
        self.speaker.update(keys["speaker"])
        self.sentence.update(keys["sentence"])
        self.recording.update(keys["recording"])

    def kinds(self) -> dict[str, set[str]]:
        return {"recording": self.recording, "speaker": self.speaker, "sentence": self.sentence}

    def clash(self, keys: Mapping[str, Sequence[str]]) -> str:
        """Return the first kind of key that both contain, or ""."""
        return next((kind for kind, found in self.kinds().items() if not found.isdisjoint(keys[kind])), "")


@dataclass(slots=True)
class PlannedRow:
    """Holds a row to be built, as JSON (see `conversations.write`), and what planning and checking need to know of it.

    `keys` names what it must not share with rows of another part: speakers and voices, sentences, recordings. A
    `spare` is built only if a drawn row of its stratum cannot be. `where` is the file and line that it was read from,
    if that is known.
    """

    id: str
    source: str
    task: str
    label: str
    modality: str
    category: str
    split: str
    keys: dict[str, list[str]]
    spare: bool
    where: str
    json: str

    @classmethod
    def of(cls, row: dict[str, Any], keys: dict[str, list[str]], where: str) -> PlannedRow:
        same = {name: row[name] for name in ("id", "source", "task", "modality", "category", "split")}
        label = row["target"] if row["choices"] else ""
        return cls(**same, label=label, keys=keys, spare=False, where=where, json=json.dumps(row))

    @property
    def stratum(self) -> tuple[str, str, str, str]:
        """Return the stratum of an evaluation row: source, task, label (of a closed set) and format."""
        return self.source, self.task, self.label, self.modality

    @property
    def group(self) -> str:
        """Return the group by which built rows are counted: source/task/format/split."""
        return "/".join((self.source, self.task, self.modality, self.split))

    @property
    def held_group(self) -> str:
        """Return the group by which rows held back are counted: source/task/split."""
        return f"{self.source}/{self.task}/{self.split}"

    def sounds(self) -> list[Sound]:
        """Return all its sounds, clip after clip."""
        return [conversations.sound_from_json(sound) for clip in json.loads(self.json)["clips"] for sound in clip]

    def line(self) -> bytes:
        """Return the row as one line of the spool."""
        head = [getattr(self, name) for name in self.__slots__ if name != "json"]
        return f"{json.dumps(head)}\t{self.json}\n".encode()

    @classmethod
    def parse(cls, line: bytes) -> PlannedRow:
        """Read a row that `line` wrote."""
        head, _, text = line.rstrip(b"\n").partition(b"\t")
        return cls(*(*json.loads(head), text.decode()))


class _Draw:
    """Draws rows by quota: keeps, for every stratum, the buildable rows with the lowest hashes.

    Twice a group's share is kept of every stratum: the others can so make up for one that runs short, and what is left
    over are spares for rows that turn out, when their audio is read, not to be usable. The rows themselves lie in a
    file; memory has their hashes, ids and places.
    """

    def __init__(self, total: int, settings: Settings, sources: Sequence[Source], file: Path) -> None:
        self._file = file.open("w+b")
        self.total, self._seed, self._most = total, settings.seed, settings.max_seconds
        self._weights = {
            (source.name, task): float(source.benchmark.get(task, 100)) for source in sources for task in source.tasks
        }
        self._scale = 2 * total / max(sum(self._weights.values()), 1.0)
        self._strata: dict[tuple[str, ...], list[tuple[int, str, int]]] = defaultdict(list)
        self._ids: set[str] = set()

    def offer(self, row: PlannedRow) -> str:
        """Offer one candidate; return why it cannot be drawn, or "" if it was kept or is not among the lowest."""
        kept = self._strata[row.stratum]
        entry = (-draw.integer(self._seed, row.id, "draw"), row.id)
        full = len(kept) >= self._weights.get((row.source, row.task), 100.0) * self._scale + 20
        if row.id in self._ids:
            return "duplicate id"
        if full and entry < kept[0][:2]:
            return ""
        if reason := unfit(row.sounds(), self._most):
            return reason
        self._ids.add(row.id)
        place = (*entry, self._file.tell())
        self._file.write(row.line())
        if full:
            self._ids.remove(heapq.heapreplace(kept, place)[1])
        else:
            heapq.heappush(kept, place)
        return ""

    def _read(self, kept: Iterable[tuple[int, str, int]]) -> list[PlannedRow]:
        """Read the rows at these positions."""
        rows = []
        for *_, place in kept:
            self._file.seek(place)
            rows.append(PlannedRow.parse(self._file.readline()))
        return rows

    def take(self, groups: Iterable[tuple[str, str]]) -> Drawn:
        """Return the drawn rows and their spares; `groups` are the sources' tasks of which some should have come."""
        pools: dict[tuple[str, str], dict[tuple[str, ...], list[tuple[int, str, int]]]] = defaultdict(dict)
        for (source, task, *rest), kept in sorted(self._strata.items()):
            if kept:
                pools[source, task][*rest] = sorted(kept, key=lambda entry: (-entry[0], entry[1]))
        weights = {group: self._weights.get(group, 100.0) for group in sorted({*groups, *pools})}
        sizes = {group: sum(map(len, pools[group].values())) if group in pools else 0 for group in weights}
        quota = allocate(self.total, weights, sizes)
        shares = allocate(self.total, weights, dict.fromkeys(weights, self.total))
        drawn = Drawn([], [], {}, {})
        for group, strata in pools.items():
            evenly = dict.fromkeys(strata, 1.0)
            counts = allocate(quota[group], evenly, {name: len(pool) for name, pool in strata.items()})
            wanted = allocate(shares[group], evenly, dict.fromkeys(strata, shares[group]))
            for name, count in counts.items():
                rows = self._read(strata[name][:count])
                spares = self._read(strata[name][count : count + count // 2 + SPARES])
                drawn.rows.extend(rows)
                drawn.spares.extend(zip(itertools.cycle(rows), spares, strict=False))
                drawn.state(stratum_name((*group, *name)), count, wanted[name])
        for group, share in shares.items():
            if group not in pools:
                drawn.state("/".join(group), 0, share)
        self._file.close()
        return drawn


@dataclass(frozen=True)
class Drawn:
    """Holds the drawn rows and what could not be drawn.

    Args:
        rows: the drawn rows.
        spares: rows of the same strata, each with the drawn row it is to be built beside.
        quotas: rows drawn from each stratum.
        short: rows that a stratum (or a task that has no row to offer) gave less than its share; others made up for
            them as far as they could.
    """

    rows: list[PlannedRow]
    spares: list[tuple[PlannedRow, PlannedRow]]
    quotas: dict[str, int]
    short: dict[str, int]

    def state(self, stratum: str, count: int, share: int) -> None:
        """Record how many rows a stratum gave, and how many it should have given."""
        if count:
            self.quotas[stratum] = count
        if count < share:
            self.short[stratum] = share - count

    def digest(self) -> str:
        """Return a digest of the drawn rows, equal for corpora that hold out the same rows."""
        ids = sorted(row.id for row in (*self.rows, *(spare for _, spare in self.spares)))
        return sha256("\n".join(ids).encode(errors="surrogateescape")).hexdigest()

    def hold(self, held: _Keys) -> None:
        """Add to `held` what no other split may share with these rows and spares."""
        for row in (*self.rows, *(spare for _, spare in self.spares)):
            held.add(row.keys)


def stratum_name(stratum: Sequence[str]) -> str:
    """Name a stratum: "source/task/label/format", without a label if answers are open."""
    return "/".join(part for part in stratum if part)


class _Planner:
    """Walks over the sources once and gathers the planned rows."""

    def __init__(
        self, settings: Settings, sources: Sequence[Source], folder: Path, progress: Callable[[int], None] | None
    ) -> None:
        self.settings, self.sources, self.folder, self.progress = settings, sources, folder, progress
        self.voices = settings.voices or default_voices(settings.speech, settings.seed)
        parts = [(voice, split) for split, pool in self.voices.items() for voice in pool if voice]
        for voice, split in parts:
            if other := next((o for v, o in parts if v == voice and o != split), ""):
                raise ValueError(f"voice {voice} is in {split} and in {other}: give each voice to one split")
        limit, rows, validation_rows = settings.limit, settings.eval_rows, settings.validation_rows
        rows, few = (rows, validation_rows) if limit is None else (min(rows, limit), min(validation_rows, limit // 10))
        self.evaluation = _Draw(rows, settings, sources, folder / "evaluation-draw.jsonl")
        self.validation = _Draw(few, settings, sources, folder / "validation-draw.jsonl")
        self.roots = {source.name: str(source.root or "") for source in sources}
        self.offered = self.items = self.beyond_limit = 0
        self.groups: set[tuple[str, str]] = set()
        self.first_reject = ""
        self.spooled, self.found, self.without_facts = Counter[tuple[str, str, str]](), Counter[str](), Counter[str]()
        self.held_back, self.rejects, self.dropped = Counter[str](), Counter[str](), Counter[str]()

    def run(self) -> dict[str, Any]:
        """Plan the corpus and return the content of plan.json."""
        settings, held = self.settings, _Keys()
        with (self.folder / "rejects.jsonl").open("w", encoding="utf-8") as self.reject_file:
            with self._spool("train").open("wb") as train, self._spool("validation").open("wb") as validation:
                self._walk(train, validation)
            drawn = self.evaluation.take(self.groups)
            drawn.hold(held)
            evaluation = drawn.digest()
            if settings.corpus != "eval":
                drawn = self._draw_validation(held)
                drawn.hold(held)
        self.held_back.subtract(Counter(row.held_group for row in drawn.rows))
        dealt = self._deal(drawn, held)
        for split in ("train", "validation", "evaluation-draw", "validation-draw"):
            self._spool(split).unlink()
        names = ", ".join(source.name for source in self.sources)
        if not dealt["rows"]:
            raise ValueError(
                f"nothing to build: no row of {names} goes into {settings.corpus}"
                + (f"; {self.rejects.total():,} rejected, the first at {self.first_reject}" if self.rejects else "")
                + (f"; {read_under(settings.limit)}" if settings.limit else "")
            )
        left_out = (self.held_back, self.dropped, self.rejects)
        assert self.offered == dealt["rows"] + self.beyond_limit + sum(count.total() for count in left_out)
        return {
            "corpus": settings.corpus,
            "seed": settings.seed,
            "speech": settings.speech,
            "processor": settings.processor,
            "max_seconds": settings.max_seconds,
            "limit": settings.limit,
            "settings": {
                **{name: getattr(settings, name) for name in ("eval_rows", "validation_rows", "limit")},
                **{name: getattr(settings, name) for name in ("rows_per_shard", "max_seconds")},
                **{name: getattr(settings, name) for name in INSTRUCT_SHARES if getattr(settings, name)},
                "voices": {split: list(pool) for split, pool in self.voices.items()},
                "options": json.loads(json.dumps({s.name: dict(s.options) for s in self.sources}, default=str)),
            },
            "sources": {source.name: source.card() for source in self.sources},
            "roots": self.roots,
            "offered": self.offered,
            "evaluation": evaluation,
            **dealt,
            "held_out": {
                "asked": (self.evaluation if settings.corpus == "eval" else self.validation).total,
                "drawn": len(drawn.rows),
                "quotas": drawn.quotas,
                "short": drawn.short,
            },
            "dropped": {kind: self.dropped[kind] for kind in held.kinds()},
            "held_back": {name: count for name, count in sorted(self.held_back.items()) if count},
            "beyond_limit": self.beyond_limit,
            "items": self.items,
            "without_facts": dict(self.without_facts),
            "found": dict(sorted(self.found.items())),
            "rejects": dict(self.rejects.most_common()),
        } | ({"tasks": settings.stated_tasks()} if settings.tasks else {})

    def _spool(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl"

    def _walk(self, train: BinaryIO, validation: BinaryIO) -> None:
        """Read all items: offer evaluation rows to the draw, write the others to the spools."""
        for source in self.sources:
            facts, read = Counter[str](), 0
            mixer = Interleaver(self.settings.interleaved, self.settings.max_seconds)
            for item in source.items():
                if isinstance(item, Reject):
                    self.offered += 1
                    self._reject(source.name, item.where, item.reason)
                    continue
                read += 1
                if reason := _text_fault(item):
                    self.offered += 1
                    self._reject(source.name, item.where or item.id, reason, item.sound)
                    continue
                if self.progress and (self.items + read) % PROGRESS_EVERY == 0:
                    self.progress(self.items + read)
                split = split_of(source, item, self.settings.seed)
                if split not in SPLITS:
                    raise ValueError(
                        f"{source.name}: item {item.id}: split {split!r} is not one of {', '.join(SPLITS)}"
                    )
                if split == "train":
                    for mixed in mixer.add(item):
                        self._sort(source, mixed, mixed.facts[0], split, mixed.facts[0].corpora, train, validation)
                self.without_facts[source.name] += not item.facts
                for fact in item.facts:
                    into = corpora_of(source, item, fact, self.settings.seed)
                    if self._sort(source, item, fact, split, into, train, validation):
                        facts.update(f"{corpus}/{split}" for corpus in into)
                if self.settings.limit and self._enough(facts, read):
                    break
            self.items += read
        self.without_facts = +self.without_facts

    def _enough(self, facts: Counter[str], read: int) -> bool:
        """Return whether a limited build can stop reading a source.

        The answer is the same for all corpora, so that they hold out the same rows.
        """
        most = self.settings.limit or 0
        parts = ("align/train", "instruct/train", "eval/test")
        return read >= most * READ_PER_LIMITED_ROW or min(facts[part] for part in parts) >= most

    def _sort(
        self,
        source: Source,
        item: Item,
        fact: Fact,
        split: str,
        into: Sequence[str],
        train: BinaryIO,
        validation: BinaryIO,
    ) -> bool:
        """Assign one fact, which goes into these corpora; return whether it was usable."""
        corpus = self.settings.corpus
        ours = corpus in into and (corpus != "eval" or split == "test")
        self.offered += ours
        if reason := conversations.fault(item, fact, self.settings.max_seconds):
            if ours:
                self._reject(source.name, item.where or conversations.row_id(source, item, fact), reason, item.sound)
            return False
        self.found[f"{source.name}/{fact.task}"] += 1
        if corpus in into:
            self.groups.add((source.name, fact.task))
        if split == "test" and "eval" in into:
            # The same row whichever corpus is planned.
            reason = self.evaluation.offer(self._row("eval", source, item, fact, split))
        elif ours and split != "test":
            row = self._row(corpus, source, item, fact, split)
            if split == "train":
                train.write(row.line())
                self.spooled[row.modality, row.category, split] += 1
                return True
            validation.write(row.line())
        if ours and reason:
            self._reject(source.name, item.where or conversations.row_id(source, item, fact), reason, item.sound)
        elif ours:
            self.held_back[f"{source.name}/{fact.task}/{split}"] += 1
        return True

    def _row(self, corpus: str, source: Source, item: Item, fact: Fact, split: str) -> PlannedRow:
        seed, voices = self.settings.seed, self.voices[split]
        first = self.settings.transcript_first if split == "train" else 0.0
        row = conversations.write(corpus, source, item, fact, split, seed, voices, self.settings.max_seconds, first)
        return PlannedRow.of(row, keys_of(source, item, row["voice"]), item.where)

    def _draw_validation(self, held: _Keys) -> Drawn:
        """Draw from the validation rows that share nothing with what is held."""
        for row, _ in self._spooled("validation"):
            if not held.clash(row.keys) and (reason := self.validation.offer(row)):
                self.held_back[row.held_group] -= 1
                self._reject(row.source, row.where or row.id, reason, row.sounds())
        return self.validation.take(self.groups)

    def _spooled(self, split: str) -> Iterator[tuple[PlannedRow, bytes]]:
        """Yield the rows of a spool, each with its line."""
        with self._spool(split).open("rb") as lines:
            for line in lines:
                yield PlannedRow.parse(line), line

    def _reject(self, source: str, where: str, reason: str, sounds: Sequence[Sound] = ()) -> None:
        self.first_reject = self.first_reject or f"{where}: {reason}"
        self.rejects[f"{source}: {reason}"] += 1
        self.reject_file.write(reject_line(source, where, reason, sounds, self.roots[source]))

    def _deal(self, drawn: Drawn, held: _Keys) -> dict[str, Any]:
        """Deal the drawn rows and the training rows that share nothing with them into one file a shard."""
        limit = self.settings.limit
        sizes = Counter((row.modality, row.category, row.split) for row in drawn.rows)
        sizes.update({name: count if limit is None else min(count, limit) for name, count in self.spooled.items()})
        shards = {name: max(1, math.ceil(count / self.settings.rows_per_shard)) for name, count in sizes.items()}
        room = None if limit is None else self._room(limit - len(drawn.rows), held)
        counts, labels = Counter[str](), Counter[str]()
        estimate = Estimate(self.settings.seed)
        with _Buckets(self.folder / "rows", shards, self.settings.seed) as buckets:

            def keep(row: PlannedRow, line: bytes) -> None:
                buckets.add(row, line)
                counts[row.group] += 1
                if row.label:
                    labels["/".join((row.source, row.task, row.label))] += 1
                estimate.add(row.group, row.id, row.json)

            for row in drawn.rows:
                keep(row, row.line())
            for beside, row in drawn.spares:
                buckets.add(row, replace(row, spare=True).line(), beside)
            for row, line in self._spooled("train"):
                if clash := held.clash(row.keys):
                    self.dropped[clash] += 1
                elif room is not None and not room[row.source]:
                    self.beyond_limit += 1
                else:
                    keep(row, line)
                    if room is not None:
                        room[row.source] -= 1
        hours = estimate.hours()
        return {
            "rows": buckets.total,
            "shards": [{"name": name, "rows": count} for name, count in sorted(buckets.counts.items())],
            "counts": dict(sorted(counts.items())),
            "labels": dict(sorted(labels.items())),
            "hours": {name: round(value, 4) for name, value in hours.items()},
            "bytes": round(sum(hours.values()) * 3600 * FLAC_BYTES_PER_SECOND),
        }

    def _room(self, rows: int, held: _Keys) -> dict[str, int]:
        """Return how many training rows each source may give under a limit."""
        clean = Counter(row.source for row, _ in self._spooled("train") if not held.clash(row.keys))
        return allocate(rows, dict.fromkeys(sorted(clean), 1.0), clean)


class _Buckets:
    """Writes the planned rows of each shard to a file, in large blocks; rows are assigned to shards by hash."""

    def __init__(self, folder: Path, shards: Mapping[tuple[str, str, str], int], seed: int) -> None:
        self.folder, self._shards, self._seed = folder, shards, seed
        self.counts: Counter[str] = Counter()
        self._waiting: dict[str, list[bytes]] = defaultdict(list)
        self._bytes = 0
        self.folder.mkdir()
        for (modality, category, split), number in shards.items():
            for index in range(number):
                self.counts[self._name(modality, category, split, index)] = 0

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, row: PlannedRow, line: bytes, beside: PlannedRow | None = None) -> None:
        """Deal one row, written as `line`; a spare goes where the row `beside` it goes, and does not count."""
        number = self._shards[row.modality, row.category, row.split]
        index = draw.integer(self._seed, (beside or row).id, "shard") % number
        name = self._name(row.modality, row.category, row.split, index)
        self._waiting[name].append(line)
        self.counts[name] += beside is None
        self._bytes += len(line)
        if self._bytes > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows."""
        for name, lines in self._waiting.items():
            with (self.folder / f"{name}.jsonl").open("ab") as file:
                file.writelines(lines)
        self._waiting.clear()
        self._bytes = 0

    def _name(self, modality: str, category: str, split: str, index: int) -> str:
        number = self._shards[modality, category, split]
        return f"{modality}.{split}-{category}-{index:05d}-of-{number:05d}"

    def __enter__(self) -> _Buckets:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()


def _text_fault(item: Item) -> str:
    """Say why an item's text cannot stand in a row, or ""."""
    of_facts = [text for fact in item.facts for text in (fact.target, fact.instruction, fact.input)]
    of_facts += [part for fact in item.facts for _, parts in fact.messages for part in parts if part is not None]
    try:
        "".join((item.id, item.speaker, item.sentence, *of_facts)).encode()
    except UnicodeEncodeError:  # JSON can hold lone surrogates, which UTF-8 cannot
        return "text is not Unicode"
    if any(PLACEHOLDER in text for text in of_facts):
        return f"text holds {PLACEHOLDER}, which stands for a recording"
    return ""


def reject_line(source: str, where: str, reason: str, sounds: Sequence[Sound], root: str) -> str:
    """Return a line of rejects.jsonl, with the recording if any; paths are relative to the source's folder."""
    line = {"source": source, "where": where.removeprefix(f"{root}/"), "reason": reason}
    if file := next((sound.path for sound in sounds if isinstance(sound, Recording)), ""):
        line["file"] = file.removeprefix(f"{root}/")
    return json.dumps(line) + "\n"


def keys_of(source: Source, item: Item, voices: str) -> dict[str, list[str]]:
    """Return what an item's row must not share with another split: speakers, sentences, recordings."""
    speakers = [f"voice:{voice}" for voice in voices.split()]
    if item.speaker and "speaker" not in source.shared:
        speakers.append(source.speaker_of(item))
    said = () if "sentence" in source.shared else (item.sentence, *item.joins)
    sentences = [sentence_key(sentence) for sentence in said if sentence]
    recordings = [f"{part.name or part.path}@{part.start}" for part in item.sound if isinstance(part, Recording)]
    return {"speaker": speakers, "sentence": sentences, "recording": recordings}


def default_voices(speech: str, seed: int) -> dict[str, list[str]]:
    """Draw voices for each split by name: a fifth for evaluation, a tenth for validation, the rest for training.

    Raises:
        ValueError: the backend is a speech model, whose voices have to be listed in the settings.
    """
    if speech != "espeak":
        raise ValueError(f"say which voices of {speech} are for training and which for evaluation (`voices` by split)")
    pools: dict[str, list[str]] = {split: [] for split in SPLITS}
    for voice in voices():
        point = draw.unit(seed, voice, "pool")
        pools["test" if point < 0.2 else "validation" if point < 0.3 else "train"].append(voice)
    return pools
