"""`sources.yaml`: which corpora lie where, and how to build from them.

A source is a name and a folder, or a name and a mapping of its folder (`path`) and options, or a name and a block that
says where rows of one's own lie (`source_blocks`). Paths are relative to the file. `tasks` defines tasks beside the
paper's (`own_tasks`). The other keys are those of `corpus_plan.Settings`, and `slurm` and `ray` for the executors.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from llaso_common.schema import SPLITS
from llaso_common.tasks import TASKS, Task

from . import hub_presets, source_blocks
from .corpus_plan import Settings
from .made_questions import TASKS_MADE
from .own_tasks import KINDS, read_tasks
from .sources import base

SETTINGS = {field.name for field in fields(Settings)} - {"corpus", "seed", "limit", "tasks"}
EXECUTORS = {"slurm", "ray"}
HUB = "hub"
"""In place of a folder: the corpus as it stands on the Hub."""


@dataclass(frozen=True)
class SourcesFile:
    """Holds the content of a sources file: sources with their folders, build settings, executor options."""

    sources: list[base.Source]
    settings: dict[str, Any]
    executors: dict[str, dict[str, Any]]


def template() -> str:
    """Write a sources file to fill in: every known corpus, commented out, with its terms and layout."""
    blocks = [
        "# Which corpora lie where. Take the # off those you have, and say their folders (relative ones are relative",
        "# to this file). Give the same file to `llaso data build align`, `instruct` and `eval`: what is held out for",
        "# evaluation is computed from all of them.",
        "sources:",
    ]
    for name in base.names():
        source = base.load(name)
        if not source.needs:
            continue  # made by synthesis, from no folder
        terms = source.license if source.redistributable else f"{source.license}; not to be published with audio"
        layout = source.layout.replace("\n", "\n  #     ")
        blocks += [
            "",
            f"  # {source.title}: {', '.join(source.tasks)}",
            f"  # {source.homepage} ({terms})",
            f"  #     {layout}",
            f"  # {name}: {_entry(source)}",
        ]
    blocks += [
        "",
        "# Tasks beside the paper's, which your sources have answers for; a text file holds one instruction a line.",
        f"# Kinds: {', '.join(KINDS)}.",
        "# tasks:",
        "#   URGENCY: {kind: closed, name: urgency of a call, labels: [low, high], instructions: urgency.txt}",
        "#   CALLER_AGE: {kind: number, bounds: [0, 110], instructions: age.txt}",
        "",
        "# Settings, with their defaults.",
    ]
    for field in fields(Settings):
        if field.name in SETTINGS - {"voices"}:
            blocks.append(f"# {field.name}: {json.dumps(field.default)}")
    blocks += [
        "",
        "# Synthetic voices by split, no voice in two of them; drawn from espeak-ng's if none are named.",
        "# voices: {train: [en-us+f1, en+m1], validation: [en-us+f2], test: [en+f4]}",
        "",
        "# Arguments of datatrove's executors. Ray's cluster is the one RAY_ADDRESS names, or one started here. Both",
        "# need a file system that all nodes share.",
        "# slurm: {partition: cpu, time: '24:00:00', mem_per_cpu_gb: 2}",
        "# ray: {mem_per_cpu_gb: 2}",
    ]
    return "\n".join(blocks) + "\n"


def _entry(source: base.Source) -> str:
    """Write a source as it stands in the file: its folder and, if it has options, their defaults."""
    said = "".join(f", {name}: {json.dumps(value)}" for name, value in _options(source).items())
    return f"{{path: /data/{source.name}{said}}}" if said else f"/data/{source.name}"


def _options(source: base.Source) -> dict[str, Any]:
    """Return the options of a source's `read`, with their defaults."""
    found = inspect.signature(source.read).parameters.values()
    declared = {option.name: option.default for option in found if option.default is not option.empty}
    return {**declared, **source.options}


def read(path: Path) -> SourcesFile:
    """Read a sources file, and look into every folder it names.

    Raises:
        ValueError: it is missing or not YAML, names an unknown source, option or setting (the message says the
        nearest that is known), gives one a value of another type, or a folder is missing, laid out otherwise or named
        twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"no sources file {path}: `llaso data sources` prints one to fill in") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep to be read") from error
    if not isinstance(content, dict) or not isinstance(content.get("sources"), dict) or not content["sources"]:
        raise ValueError(
            f"{path}: say which corpora to read, as\nsources:\n  librispeech: /data/LibriSpeech\n"
            "`llaso data sources` prints a file to fill in"
        )
    _check_known(f"{path}: unknown key", content, {"sources", "tasks"} | SETTINGS | EXECUTORS)
    if wrong_names := [name for name in content["sources"] if not isinstance(name, str)]:
        raise ValueError(f"{path}: sources: the name {wrong_names[0]!r} is not text; write it in quotes")
    tasks = read_tasks(path, content["tasks"]) if "tasks" in content else ()
    tasks += _made(path, content["sources"].values(), tasks)
    TASKS.declare(tasks, str(path))  # sources check their facts against them
    sources = [_source(path, name, entry) for name, entry in content["sources"].items()]
    if wrong := [fault for source in sources if (fault := source.layout_fault())]:
        raise ValueError(f"{path}: " + "\n\n".join(wrong))
    _check_shared_folders(path, sources)
    settings = {key: value for key, value in content.items() if key in SETTINGS}
    for name in ("speech", "processor"):
        _check_type(f"{path}: {name}", settings.get(name, ""), "")
    _check_voices(path, settings.get("voices", {}))
    try:
        Settings("align", **settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    executors = {key: content.get(key) or {} for key in EXECUTORS}
    for key, options in executors.items():
        if not isinstance(options, dict):
            raise ValueError(f"{path}: {key}: give its options, as `{key}: {{mem_per_cpu_gb: 2}}`")
    for name, said in (("processor", settings.get("processor", "")), ("speech", settings.get("speech", "espeak"))):
        if said not in ("", "espeak") and (checkpoint := path.parent / said).is_dir():
            settings[name] = str(checkpoint.absolute())
    return SourcesFile(sources, settings | ({"tasks": tasks} if tasks else {}), executors)


def _made(path: Path, entries: Iterable[Any], own: Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks of the questions that blocks want made from their transcripts.

    Raises:
        ValueError: one of the file's own tasks has the code of one.
    """
    blocks = (entry.get("questions") for entry in entries if source_blocks.is_block(entry))
    wanted = dict.fromkeys(code for said in blocks if isinstance(said, list | dict) for code in map(str, said))
    if taken := next((task.code for task in own if task.code in wanted and task.code in TASKS_MADE), ""):
        raise ValueError(f"{path}: tasks: {taken}: `questions` makes a task of this code; choose another")
    return tuple(TASKS_MADE[code] for code in wanted if code in TASKS_MADE)


def _source(path: Path, name: str, entry: Any) -> base.Source:
    """Return a source with its folder, or with the data that a block of its own names."""
    try:
        if HUB in (entry, isinstance(entry, dict) and entry.get("path")):
            changes = {key: value for key, value in entry.items() if key != "path"} if isinstance(entry, dict) else {}
            entry = hub_presets.preset(name, changes)
        if source_blocks.is_block(entry):
            return source_blocks.source_of(name, entry, path.parent.absolute())
        source = base.load(name)
    except ValueError as error:
        of_block = f"{name}: " * (source_blocks.is_block(entry) or entry == HUB)
        raise ValueError(f"{path}: sources: {of_block}{error}") from error
    options = dict(entry) if isinstance(entry, dict) else {"path": entry}
    folder, known = options.pop("path", None), _options(source)
    if not isinstance(folder, str):
        raise ValueError(f"{path}: sources: {name}: say its folder, as `{name}: /data/{name}`")
    _check_known(f"{path}: sources: {name}: unknown option", options, known)
    for option, value in options.items():
        _check_type(f"{path}: sources: {name}: {option}", value, known[option])
    return source.at(path.parent / Path(folder).expanduser(), **options)


def _check_known(what: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Raise ValueError for an unknown key, naming the nearest known one."""
    for word in sorted(set(map(str, given)) - set(known)):
        there = ", ".join(sorted(known))
        raise ValueError(f"{what} {word}; {base.nearest(word, known)}there are {there or 'none'}")


def _check_type(what: str, value: Any, default: Any) -> None:
    """Raise ValueError unless the value has the default's type; a whole number is accepted for any number."""
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kind = int if default is None else type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{what}: {value!r} is not {kinds[kind]}")


def _check_voices(path: Path, voices: Any) -> None:
    """Raise ValueError unless voices are lists of names by split."""
    if not isinstance(voices, dict) or not all(
        isinstance(pool, list) and all(isinstance(voice, str) for voice in pool) for pool in voices.values()
    ):
        raise ValueError(f"{path}: voices: give a list of names for each split, as `train: [en-us+f1, en+m1]`")
    _check_known(f"{path}: voices: no split", voices, SPLITS)
    if voices and (absent := [split for split in SPLITS if split not in voices]):
        raise ValueError(f"{path}: voices: none for {', '.join(absent)}; give each split its own")


def _check_shared_folders(path: Path, sources: Sequence[base.Source]) -> None:
    """Raise ValueError if two sources would read the same files: one corpus would be counted twice."""
    read_by = dict[tuple[str, ...], str]()
    for source in sources:
        for reading, what in source_blocks.readings(source).items() if source_blocks.is_block(source.options) else ():
            if reading in read_by:
                raise ValueError(
                    f"{path}: sources: {read_by[reading]} and {source.name} both read {what}: its rows would count "
                    "twice; name it once"
                )
            read_by[reading] = source.name
    for one, other in itertools.combinations(sources, 2):
        if one.root and other.root and one.root.resolve() == other.root.resolve():
            patterns = [way for need in other.needs for way in need.split("|")]
            matched = (file for need in one.needs for way in need.split("|") for file in one.root.glob(way))
            twice = next((file for file in matched if any(file.match(way) for way in patterns)), None)
            if twice:
                raise ValueError(
                    f"{path}: sources: {one.name} and {other.name} both name {one.root} and would both read "
                    f"{twice.name}: name it once"
                )


class _Loader(yaml.SafeLoader):
    """Loads YAML and refuses a key that is given twice: the first would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in (earlier.value for earlier in keys[:index]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)
