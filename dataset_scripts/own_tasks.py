"""`tasks:` of a sources file: tasks that the paper does not have, read and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llaso_common.tasks import CATEGORIES, PAPER_TASKS, AnswerKind, Task

from .instructions import STYLES, read_instructions
from .sources.base import nearest

KINDS: dict[str, tuple[AnswerKind, str]] = {
    "closed": ("closed", "paralinguistic"),
    "number": ("number", "paralinguistic"),
    "transcript": ("transcript", "linguistic"),
    "slots": ("slots", "semantic"),
    "open": ("open", "semantic"),
}
"""By the `kind` of a user's task: the form of its answers, and the category under which it is counted by default."""
KEYS = {"kind", "name", "instructions", "category", "formats"}
KEYS_OF_KIND = {"closed": {"labels", "aliases"}, "number": {"bounds"}, "open": {"metric"}}
FORMATS = ("text_audio", "audio")
"""The formats that a recording alone makes possible: a written or a spoken instruction."""
_CODE = re.compile(r"[A-Z][A-Z0-9_]*")


def read_tasks(file: Path, entries: Any) -> tuple[Task, ...]:
    """Read the tasks of a sources file.

    Args:
        file: the sources file; instruction files are relative to it.
        entries: the value of its key `tasks`.

    Raises:
        ValueError: an entry cannot be used; the message names file, task, key and remedy.
    """
    if not isinstance(entries, Mapping):
        raise ValueError(f"{file}: tasks: give a mapping, as `URGENCY: {{kind: closed, labels: [low, high], ...}}`")
    tasks = []
    for code, entry in entries.items():
        where = f"{file}: tasks: {code}"
        try:
            tasks.append(_read_task(file, str(code), entry))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return tuple(tasks)


def _read_task(file: Path, code: str, entry: Any) -> Task:
    if not _CODE.fullmatch(code):
        raise ValueError("a code has capital letters, digits and _, and begins with a letter, as URGENCY; rename it")
    if code in PAPER_TASKS:
        raise ValueError(f"the paper's {PAPER_TASKS[code].name} has this code; choose another")
    if not isinstance(entry, Mapping):
        raise ValueError("give its keys, as `{kind: closed, labels: [low, high], instructions: urgency.txt}`")
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        said = f"unknown kind {kind!r}; {nearest(str(kind), KINDS)}" if "kind" in entry else ""
        raise ValueError(f"kind: {said}choose one of {', '.join(KINDS)}")
    known = KEYS | KEYS_OF_KIND.get(kind, set())
    if unknown := sorted(str(key) for key in entry if key not in known):
        raise ValueError(
            f"{unknown[0]}: no key of a {kind} task; {nearest(unknown[0], known)}there are {', '.join(sorted(known))}"
        )
    answer, category = KINDS[kind]
    name = _text("name", entry.get("name", code.lower().replace("_", " ")))
    if entry.get("metric", "judge") != "judge":
        raise ValueError(f"metric: {entry['metric']!r} is unknown; open answers are scored by the metric judge")
    labels = _texts("labels", entry.get("labels", []))
    if kind == "closed" and len(labels) < 2:
        raise ValueError("labels: a closed set needs two or more, as `labels: [low, medium, high]`")
    aliases = entry.get("aliases", {})
    if not isinstance(aliases, Mapping):
        raise ValueError("aliases: give a list of words for each label, as `{high: [urgent]}`")
    instructions = _instructions(file, entry.get("instructions"), kind)
    return Task(
        code=code,
        name=name,
        short_name=name,
        category=_one_of("category", entry.get("category", category), CATEGORIES),
        answer=answer,
        formats=tuple(
            _one_of("formats", one, FORMATS) for one in _texts("formats", entry.get("formats", list(FORMATS)))
        ),
        numbers=_bounds(entry.get("bounds")) if kind == "number" else None,
        labels=labels,
        aliases={_text("aliases", label): _texts(f"aliases: {label}", words) for label, words in aliases.items()},
        instruction=instructions[0][1],
        instructions=instructions,
    )


def _text(key: str, value: Any) -> str:
    """Return a value that has to be text; YAML reads no, yes and 3 as something else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: {value!r} is not text; write it in quotes")
    if value != (plain := " ".join(value.split())):
        raise ValueError(f"{key}: {value!r} has spaces around it, several together or a line break; write {plain!r}")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key}: {value!r} is not a list; write it in brackets, as `[low, high]`")
    return tuple(_text(key, one) for one in value)


def _one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{key}: unknown {value!r}; {nearest(str(value), known)}choose from {', '.join(known)}")
    return str(value)


def _bounds(value: Any) -> tuple[float, float]:
    numbers = value if isinstance(value, list) else []
    usable = len(numbers) == 2 and all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
    if not usable or not numbers[0] < numbers[1]:
        said = "missing" if value is None else f"{value!r} is no range"
        raise ValueError(f"bounds: {said}; give the lowest and the highest answer, as `bounds: [0, 110]`")
    return numbers[0], numbers[1]


def _instructions(file: Path, name: Any, kind: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(name, str):
        raise ValueError("instructions: missing; name a text file with one instruction a line")
    path = file.parent / Path(name).expanduser()
    try:
        found = read_instructions(path)
    except OSError as error:
        raise ValueError(
            f"instructions: {path} cannot be read ({error.strerror}); make it, with one instruction a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"instructions: {path} is not UTF-8 text; save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"instructions: {error}") from error
    if not found:
        raise ValueError(f"instructions: {path} is empty; write at least one instruction into it")
    for _, text in found:
        if "<audio>" in text:
            raise ValueError(f"instructions: {path}: {text!r} holds <audio>; leave it out, the build adds the audio")
        if "{choices}" in text and kind != "closed":
            raise ValueError(
                f"instructions: {path}: {text!r} holds {{choices}}, which only closed tasks have; reword it"
            )
    return tuple(found)


def told_styles(styles: Sequence[str]) -> str:
    """Say how many instructions a task has, and which of the four styles none of them has.

    Args:
        styles: of its instructions, "" for one without.
    """
    count = f"{len(styles)} instruction" + "s" * (len(styles) != 1)
    missing = [style for style in STYLES if style not in styles]
    if len(missing) == len(STYLES):
        return f"{count}, without the paper's four styles"
    return count + (f", none in the style {' or '.join(missing)}" if missing else " in the paper's four styles")
