"""A block of `sources.yaml` that needs no code: a manifest, a data set or a folder, its columns and its tasks.

Takes the block as YAML gives it; gives a `Source` like those of the named corpora, whose items come from the rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llaso_common.schema import SPLITS
from llaso_common.tasks import PAPER_TASKS

from . import draw, made_questions
from .corpus_plan import ASR_IN_INSTRUCT
from .dataset_rows import UnpackedDataset
from .joined_clips import Joiner
from .own_rows import KALDI_TABLES, FoundRow, folder_rows, manifest_fault, manifest_rows
from .row_items import SPLIT_OF, USUAL, RowMapping, task_of, transcript_of
from .sources.base import OPEN_LICENSES, Fact, Item, Reject, Source, nearest

KINDS = ("manifest", "dataset", "folder")
"""The kinds of data that a block can read; each block names one."""
OPTIONS: dict[str, Any] = {
    "columns": dict, "tasks": dict, "values": dict, "license": str, "title": str, "homepage": str, "shared": list,
    "eval_share": float, "audio_root": str, "config": str, "splits": dict, "revision": str, "unpack": str,
    "lowercase": bool, "speakers_of": str, "questions": (list, dict), "in_instruct": dict,
    "joined": float, "spoken": bool,
}  # fmt: skip
"""The other options of a block, with the type of each."""
TASKS_OF_WORDS = frozenset(("ASR", "AQA", "SCR", "IP", "EE"))
"""The paper's tasks that ask what is said, and not who says it or how: those that spoken texts can have."""
UNKNOWN_LICENSE = "unknown"
_LICENSES = {license.casefold(): license for license in OPEN_LICENSES}


def is_block(entry: Any) -> bool:
    """Tell whether an entry of `sources:` is such a block."""
    return isinstance(entry, Mapping) and any(kind in entry for kind in KINDS)


def source_of(name: str, block: Mapping[str, Any], base: Path) -> Source:
    """Return the source that a block describes.

    Args:
        name: of the source.
        block: the entry of the sources file.
        base: folder that the block's paths are relative to.

    Raises:
        ValueError: the block says something that it cannot, its data is missing, or has not the columns it names.
    """
    if not re.fullmatch(r"[A-Za-z][\w.\-]*", name, flags=re.ASCII):
        raise ValueError("a source's name has letters, digits and ._- only, and begins with a letter")
    _check_options(block)
    if "dataset" in block:
        block = _looked_up(block, base)
    mapping = _mapping_of(block, base)
    source = Source(
        name=name,
        title=str(block.get("title", name)),
        license=_license(block.get("license", UNKNOWN_LICENSE)),
        homepage=str(block.get("homepage", "")),
        tasks=tuple(dict.fromkeys((*(task_of(code)[0].code for code in mapping.tasks), *block.get("questions", ())))),
        layout="the columns that the sources file names",
        needs=(),
        read=_read,
        shared=tuple(block.get("shared", ())),
        eval_share=float(block.get("eval_share", Source.eval_share)),
        synthetic=bool(block.get("spoken")),
        root=base.absolute(),
        options=_plain(block),
        manifests=tuple(_files_of(block, base)),
    )
    for path in _paths(block, base) if "dataset" not in block else ():
        fault = manifest_fault(path) if "manifest" in block else "" if path.is_dir() else f"no such folder: {path}"
        if fault:
            raise ValueError(fault)
    if "dataset" in block:
        _check_tasks({**block, "dataset": ""})
    if fault := mapping.missing(row.values for row in _rows(block, base) if isinstance(row, FoundRow)):
        raise ValueError(f"columns: {fault}")
    return source


def readings(source: Source) -> dict[tuple[str, ...], str]:
    """Return what a block reads, as "calls.jsonl for ASR", by file (or part of a data set), task and column."""
    block, found = source.options, dict[tuple[str, ...], str]()
    columns, kind = block.get("columns", {}), _kind(block)
    if kind == "dataset":
        said = (block["dataset"], block.get("config", ""))
        parts: list[tuple[str, ...]] = [
            (*said, name) for names in _by_split(block.get("splits", "")).values() for name in names
        ]
    else:
        parts = [(str(path.resolve()),) for path in _paths(block, source.root or Path())]
    for part in parts:
        for code, name in _tasks_of(block).items():
            found[(*part, code, columns.get(name, name))] = f"{' '.join(filter(None, part))} for {code}"
    return found


def _read(root: Path, **block: Any) -> Iterator[Item | Reject]:
    """Yield the items of a block's rows."""
    mapping = _mapping_of(block, root)
    shares = made_questions.shares_of(block.get("questions", ()))
    in_instruct = {task_of(code)[0].code: share for code, share in block.get("in_instruct", {}).items()}
    known = made_questions.Vocabulary.of(mapping.transcripts(_rows(block, root)) if shares else ())
    seen = set[int]()
    joiner = Joiner(block.get("joined", 0.0), in_instruct.get("ASR", ASR_IN_INSTRUCT))
    for row in _rows(block, root):
        if isinstance(row, Reject):
            yield row
            continue
        for item in mapping.items(row):
            if isinstance(item, Reject):
                yield item
                continue
            if again := _seen_before(item, seen):
                yield Reject(item.where, "duplicate id")
                item = replace(item, facts=tuple(fact for fact in item.facts if fact not in again))
                if not item.facts:
                    continue
            if text := transcript_of(item.facts):
                item = replace(item, facts=(*item.facts, *made_questions.made(item.id, text, shares, known)))
            yield from joiner.add(item)
            yield _placed(item, in_instruct) if in_instruct else item
    yield from joiner.rest()


def _seen_before(item: Item, seen: set[int]) -> list[Fact]:
    """Return the facts of an item that an earlier item of the same id has as well, and remember the others.

    Hashes are remembered, since the ids of millions of rows would take gigabytes.
    """
    again = []
    for fact in item.facts:
        key = hash((item.id, fact.task, fact.granularity))
        if key in seen:
            again.append(fact)
        seen.add(key)
    return again


def _placed(item: Item, in_instruct: Mapping[str, float]) -> Item:
    """Return an item whose facts are in Instruct for the share of the items that a block wants.

    Args:
        item: what is drawn depends on its id alone.
        in_instruct: by task, that share.
    """

    def placed(fact: Fact) -> Fact:
        if fact.task not in in_instruct:
            return fact
        others = ("align", "eval") if fact.task == "ASR" else ("eval",)
        drawn = draw.unit(0, item.id, f"in instruct/{fact.task}") < in_instruct[fact.task]
        return replace(fact, corpora=("instruct", *others) if drawn else others)

    return replace(item, facts=tuple(map(placed, item.facts)))


def _rows(block: Mapping[str, Any], base: Path) -> Iterator[FoundRow | Reject]:
    """Yield the rows that a block names."""
    if "dataset" in block:
        unpacked = _dataset(block, base)
        for into, names in _splits(block, unpacked).items():
            for name in names:
                yield from unpacked.rows(name, into)
        return
    kind, texts = _kind(block), "text" in _tasks_of(block).values()
    for split, paths in _by_split(block[kind]).items():
        for path in paths:
            if kind == "folder":
                yield from folder_rows(base / Path(path).expanduser(), split, texts)
            else:
                yield from manifest_rows(base / Path(path).expanduser(), split)


def _dataset(block: Mapping[str, Any], base: Path) -> UnpackedDataset:
    """Return the data set of a block; what it holds is kept beside the sources file, or in `unpack`."""
    unpack = base / Path(block.get("unpack", "unpacked")).expanduser()
    return UnpackedDataset.open(block["dataset"], base, unpack, block.get("config", ""), block.get("asked", ""))


def _looked_up(block: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return the block of a data set with its revision resolved, and the names of its class labels.

    `asked` keeps the revision that the block names: what was unpacked is found by it.
    """
    asked = {**block, "asked": block.get("revision", "")}
    unpacked = _dataset(asked, base)
    _splits(asked, unpacked)
    columns, values = block.get("columns", {}), dict(block.get("values", {}))
    for name in _tasks_of(block).values():
        if (labels := unpacked.record["labels"].get(columns.get(name, name))) and name not in values:
            values[name] = labels
    if unpacked.place is None:
        asked = {"homepage": f"https://huggingface.co/datasets/{block['dataset']}", **asked}
    return {**asked, "values": values, "revision": unpacked.record["revision"]}


def _splits(block: Mapping[str, Any], unpacked: UnpackedDataset) -> dict[str, list[str]]:
    """Return the data set's splits by the split they go into: as the block says, else by their names.

    A data set of a single split has its rows drawn, as a manifest that names none.

    Raises:
        ValueError: a split does not exist, or its name does not say what it is for.
    """
    there = list(unpacked.record["splits"])
    if "splits" in block:
        named = _by_split(block["splits"])
        for name in (name for names in named.values() for name in names):
            if name not in there:
                raise ValueError(f"splits: no split {name!r}; {nearest(name, there)}there are {', '.join(there)}")
        return named
    if len(there) == 1:
        return {"": there}
    found: dict[str, list[str]] = {}
    for name in there:
        into = SPLIT_OF.get(name.casefold())
        if into is None:
            raise ValueError(
                f"say what split {name} is for, as `splits: {{train: [{name}]}}`; there are {', '.join(there)}"
            )
        found.setdefault(into, []).append(name)
    return found


def _by_split(said: Any) -> dict[str, list[str]]:
    """Return paths by split: of a path, of a list, or of either by split."""
    named = said if isinstance(said, Mapping) else {"": said}
    return {split: list(paths) if isinstance(paths, list) else [paths] for split, paths in named.items()}


def _paths(block: Mapping[str, Any], base: Path) -> list[Path]:
    """Return all paths that a block names."""
    return [base / Path(path).expanduser() for paths in _by_split(block[_kind(block)]).values() for path in paths]


def _files_of(block: Mapping[str, Any], base: Path) -> Iterator[Path]:
    """Yield the files of a block's manifests; a Kaldi folder is a manifest of several."""
    for path in _paths(block, base) if "manifest" in block else ():
        files = [path / name for name in (*KALDI_TABLES, "text")] if path.is_dir() else [path]
        yield from filter(Path.is_file, files)


def _kind(block: Mapping[str, Any]) -> str:
    return next(kind for kind in KINDS if kind in block)


def _mapping_of(block: Mapping[str, Any], base: Path) -> RowMapping:
    """Return what a block says of its columns."""
    values = {
        name: {str(key): str(label) for key, label in found.items()}
        if isinstance(found, Mapping)
        else [*map(str, found)]
        for name, found in block.get("values", {}).items()
    }
    if "dataset" in block:
        block = {"audio_root": block["dataset"], **block}
    root = base / Path(block["audio_root"]).expanduser() if block.get("audio_root") else None
    people = block.get("speakers_of", "")
    lowercase, spoken = bool(block.get("lowercase")), bool(block.get("spoken"))
    return RowMapping(dict(block.get("columns", {})), _tasks_of(block), values, root, lowercase, people, spoken)


def _tasks_of(block: Mapping[str, Any]) -> dict[str, str]:
    """Return the tasks of a block: those it names, or speech recognition."""
    return dict(block.get("tasks") or {"ASR": "text"})


# --- what a block may say ------------------------------------------------------------------------------------------


def _check_options(block: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is unknown, of another type, or does not fit the others."""
    kinds = [kind for kind in KINDS if kind in block]
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds)}: a block reads one of them; make two blocks")
    known = {*kinds, *OPTIONS}
    for option, value in block.items():
        if option not in known:
            raise ValueError(
                f"unknown option {option}; {nearest(str(option), known)}there are {', '.join(sorted(known))}"
            )
        wanted = OPTIONS.get(option)
        numeric = wanted is float and isinstance(value, int) and not isinstance(value, bool)
        if wanted and not numeric and not isinstance(value, wanted):
            what = {
                dict: "a mapping, as `{name: value}`",
                list: "a list",
                str: "text",
                float: "a number",
                bool: "true or false",
                (list, dict): "a list of questions, or the share of each, as `{SAID: 0.5}`",
            }[wanted]
            raise ValueError(f"{option}: {value!r} is not {what}")
    if kinds[0] != "dataset":
        _check_paths(kinds[0], block[kinds[0]])
    elif not isinstance(block["dataset"], str) or not block["dataset"]:
        raise ValueError("dataset: say an id of the Hub, as owner/name, or a folder")
    else:
        _check_paths("splits", block.get("splits", "all"))
    if of_dataset := [option for option in ("config", "splits", "revision", "unpack") if option in block]:
        if kinds[0] != "dataset":
            raise ValueError(f"{of_dataset[0]}: only a `dataset:` has one")
    for option in ("columns", "tasks", "values"):
        if wrong := next((word for word in block.get(option, {}) if not isinstance(word, str)), None):
            raise ValueError(f"{option}: {wrong!r} is not text: put it in quotes")
    for option in ("columns", "tasks"):
        if wrong := next((item for item in block.get(option, {}).items() if not isinstance(item[1], str)), None):
            raise ValueError(f"{option}: {wrong[0]}: {wrong[1]!r} is not the name of a column")
    for shared in block.get("shared", ()):
        if shared not in ("sentence", "speaker"):
            raise ValueError(f"shared: {shared!r} is neither sentence nor speaker")
    if not 0 < float(block.get("eval_share", Source.eval_share)) < 1:
        raise ValueError(f"eval_share: {block['eval_share']} is not between 0 and 1")
    _check_tasks(block)
    _check_spoken(block)
    _check_questions(block)
    if not 0 <= block.get("joined", 0) <= 1:
        raise ValueError(f"joined: {block['joined']} is no share; give a number between 0 and 1")
    if block.get("joined") and "ASR" not in _tasks_of(block):
        raise ValueError("joined: clips are joined with their transcripts; name their column, as `tasks: {ASR: text}`")
    for code, share in block.get("in_instruct", {}).items():
        if code not in _tasks_of(block):
            raise ValueError(f"in_instruct: {code!r} is none of the tasks {', '.join(_tasks_of(block))}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"in_instruct: {code}: {share!r} is no share; give a number between 0 and 1")


def _check_spoken(block: Mapping[str, Any]) -> None:
    """Raise ValueError if a block whose texts the build speaks says something of recordings or of voices."""
    if not block.get("spoken"):
        return
    if "folder" in block:
        raise ValueError("spoken: a `folder:` holds recordings; write the texts in a manifest")
    if option := next((name for name in ("audio_root", "speakers_of") if name in block), ""):
        raise ValueError(f"{option}: texts that are to be spoken have no recordings and no speakers; omit it")
    about_sound = PAPER_TASKS.keys() - TASKS_OF_WORDS
    if code := next((code for code in _tasks_of(block) if task_of(code)[0].code in about_sound), ""):
        raise ValueError(
            f"tasks: {code} asks about a voice or a sound, and a text that is to be spoken has none; omit it"
        )


def _check_questions(block: Mapping[str, Any]) -> None:
    """Raise ValueError for questions that no rule makes, shares that are none, and rows without a transcript."""
    for code, share in made_questions.shares_of(block.get("questions", ())).items():
        if code not in made_questions.RULES:
            raise ValueError(
                f"questions: no rule makes {code!r}; {nearest(str(code), made_questions.RULES)}there are "
                + ", ".join(made_questions.RULES)
            )
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"questions: {code}: {share!r} is no share; give a number above 0 and at most 1")
    if block.get("questions") and "ASR" not in _tasks_of(block):
        raise ValueError("questions: they are made from transcripts; name their column, as `tasks: {ASR: text}`")


def _check_paths(kind: str, said: Any) -> None:
    """Raise ValueError unless paths are a text, a list of texts, or either by split."""
    named = _by_split(said)
    for split, paths in named.items() or [("", [])]:
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ValueError(
                f"{kind}: say a path, a list of paths, or paths by split, as `{{train: a.jsonl, test: b.jsonl}}`"
            )
        if split not in SPLITS and (split != "" or isinstance(said, Mapping)):
            raise ValueError(f"{kind}: no split {split!r}; {nearest(str(split), SPLITS)}there are {', '.join(SPLITS)}")
    given = [os.path.normpath(path) for paths in named.values() for path in paths]
    if twice := next((path for path in given if given.count(path) > 1), None):
        raise ValueError(f"{kind}: {twice} is named twice: its rows would count twice; name it once")


def _check_tasks(block: Mapping[str, Any]) -> None:
    """Raise ValueError for tasks that do not exist or whose labels are not known, and for values of no column."""
    tasks, values = _tasks_of(block), block.get("values", {})
    for code, name in tasks.items():
        try:
            task, granularity = task_of(code)
        except ValueError as error:
            raise ValueError(f"tasks: {error}") from error
        free = (
            bool(block.get("dataset"))  # its class labels are looked up first
            or task.code == "SGC"
            or task.labels
            or (task.numbers and granularity in ("", "number"))
            or name in USUAL["messages"]
        )
        if task.answer == "closed" and not free and name not in values:
            raise ValueError(
                f"tasks: {code}: say its labels, as `values: {{{name}: [first, second]}}`, or a label for each value "
                f"of the column, as `values: {{{name}: {{a: first, b: second}}}}`"
            )
    usable = {*USUAL, *tasks.values()}
    if unused := sorted(set(block.get("columns", {})) - usable):
        raise ValueError(
            f"columns: no task asks for {unused[0]}; {nearest(unused[0], usable)}a column is one of "
            f"{', '.join(USUAL)}, or what `tasks` names"
        )
    known = {*block.get("columns", {}), *tasks.values(), "split"}
    for name, said in values.items():
        if name not in known:
            raise ValueError(
                f"values: {name} is no column of `columns` or `tasks`; {nearest(name, known)}there are "
                + ", ".join(sorted(known))
            )
        words = [*said, *said.values()] if isinstance(said, Mapping) else said
        if not isinstance(words, list) or not words:
            raise ValueError(
                f"values: {name}: say a list of labels, or a label for each value, as `{{m: male, f: female}}`"
            )
        if (
            wrong := next((word for word in words if isinstance(word, bool) or not isinstance(word, str | int)), None)
        ) is not None:
            raise ValueError(f"values: {name}: {wrong!r} is not text: put it in quotes")


def open_license(said: str) -> bool:
    """Tell whether a licence lets audio be published again."""
    return _license(said) in OPEN_LICENSES


def _license(said: str) -> str:
    """Return a licence in the spelling of `OPEN_LICENSES`, as the Hub's cards and people write it."""
    return _LICENSES.get(said.strip().casefold().replace(" ", "-"), said.strip() or UNKNOWN_LICENSE)


def _plain(value: Any) -> Any:
    """Return a block as JSON would give it back: keys and labels are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
