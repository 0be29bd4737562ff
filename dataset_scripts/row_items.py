"""Turns a row of a user's table into an `Item`: what each column means, the task that asks for it, and its labels.

Takes the part of a block of `sources.yaml` that says so (`RowMapping`) and rows as dictionaries; gives items and
rejects. Nothing is guessed: a value that does not fit is a `Reject` with its file and line.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from llaso_common.schema import SPLITS
from llaso_common.tasks import TASKS, Task

from . import labels
from .own_rows import FoundRow
from .release import ROLES, parts_of
from .sources.base import Fact, Item, Recording, Reject, Sound, Speech, nearest
from .task_forms import GRANULARITIES

USUAL = {
    "audio": ("audio", "audio_filepath"),
    "text": ("text",),
    "question": ("question",),
    "input": ("input",),
    "messages": ("messages", "conversations"),
    "speaker": ("speaker",),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
    "split": ("split",),
    "id": ("id",),
}
"""Meanings of columns, and names by which each is found if none is given; second names are NeMo's and ShareGPT's."""
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "test": "test",
    "eval": "test",
    "evaluation": "test",
} | dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation")
_ABSENT = object()


@dataclass(frozen=True)
class RowMapping:
    """Says what the columns of a table are.

    Args:
        columns: the column (or `a.b` within nested ones) by what it is: a name of `USUAL`, or any name that `tasks`
            uses.
        tasks: by task ("SGC", or with its variant "EIE.sentiment"), what its answer is: a name of `columns`, or a
            column.
        values: by name of `columns`, the label for each value, or the list of labels.
        audio_root: folder that relative paths of audio begin in; None for that of the row's file.
        lowercase: write transcripts in lower case.
        people: the collection that speakers are numbered in, if several sources share it; "" for the source's own.
        spoken: there are no recordings; the build speaks the `text` of each row.
    """

    columns: Mapping[str, str]
    tasks: Mapping[str, str]
    values: Mapping[str, Mapping[str, str] | Sequence[str]] = field(default_factory=dict)
    audio_root: Path | None = None
    lowercase: bool = False
    people: str = ""
    spoken: bool = False

    def named(self) -> dict[str, str]:
        """Return the columns that have to be there, by what they are; those of `USUAL` that are not named need not."""
        found = {**self.columns, **{name: self.columns.get(name, name) for name in self.tasks.values()}}
        if any(code == "AQA" and not self._is_chat(name) for code, name in self.tasks.items()):
            found.setdefault("question", "question")
        elif not self.spoken and not all(self._is_chat(name) for name in self.tasks.values()):
            found.setdefault("audio", "audio")
        if self.spoken:
            found.setdefault("text", "text")
        return found

    def missing(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Say which named column none of the rows has, and the nearest that there is; "" if there is none such.

        Reads no further than needed: rows may lack what others have.
        """
        missing, seen = dict(self.named()), dict[str, None]()
        for row in rows:
            seen.update(dict.fromkeys(column_paths(row)))
            for name in list(missing):
                if any(pick(row, each) is not _ABSENT for each in self._columns(name)):
                    del missing[name]
            if not missing:
                return ""
        if not seen:
            return ""
        name, column = next(iter(missing.items()))
        spoken = "; for texts without recordings say `spoken: true`" if name == "audio" else ""
        return f"no column {column!r} (for {name}); {nearest(column, seen)}there are {', '.join(seen)}{spoken}"

    def items(self, found: FoundRow) -> Iterator[Item | Reject]:
        """Yield the item of a row, if any task can be asked of it; and a `Reject` for each that cannot."""
        row, where = found.values, found.where
        try:
            split = found.split or self._split(row)
            speaker, text = (_text(self._value(row, name)) for name in ("speaker", "text"))
            sound = self._speech(row, text) if self.spoken else self._sound(row, found.base)
        except ValueError as error:
            yield _reject(where, error)
            return
        facts = list[tuple[Fact, tuple[Sound, ...]]]()
        for code, name in self.tasks.items():
            try:
                fact, sound_of_task = self._fact(code, name, found, sound)
            except ValueError as error:
                yield _reject(where, error)
                continue
            if fault := fact.fault():
                yield Reject(f"{where} ({fact.target[:80]})", fault)
                continue
            facts.append((fact, sound_of_task))
        speaker = f"{self.people}:{speaker}" if self.people and speaker else speaker
        for heard in dict.fromkeys(sounds for _, sounds in facts):
            of_these = tuple(fact for fact, sounds in facts if sounds == heard)
            sentence = text or next((f.target for f in of_these if TASKS[f.task].answer == "transcript"), "")
            if not heard and not sentence:
                sentence = f"{of_these[0].instruction} {of_these[0].input}".strip()
            try:
                id = self._id(found, heard)
            except ValueError as error:
                yield Reject(where, f"id: {error}")
                continue
            yield Item(id, of_these, heard, speaker, sentence, split, where, apart=len(heard) > 1)

    def transcripts(self, found: Iterable[FoundRow | Reject]) -> Iterator[str]:
        """Yield the transcript of each row that has one, without looking for its recording."""
        for row in found:
            value = None if isinstance(row, Reject) else self._value(row.values, self.tasks["ASR"])
            if isinstance(value, str) and value.strip():
                yield value

    # --- one value --------------------------------------------------------------------------------------------------

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """Return what a row says under a name of `columns`; None if it says nothing."""
        found = (pick(row, each) for each in self._columns(name))
        return next((value for value in found if value is not _ABSENT and value is not None), None)

    def _columns(self, name: str) -> Sequence[str]:
        """Return the columns that may hold what goes by a name."""
        return (self.columns[name],) if name in self.columns else USUAL.get(name, (name,))

    def _split(self, row: Mapping[str, Any]) -> str:
        """Return the split that a row names, or ""."""
        said = _text(self._value(row, "split"))
        if not said:
            return ""
        mapped = self.values.get("split", {})
        split = mapped.get(said, said) if isinstance(mapped, Mapping) else said
        split = SPLIT_OF.get(split.casefold(), split)
        if split not in SPLITS:
            raise ValueError(f"split is none of {', '.join(SPLITS)}: say which under `values: {{split: …}}`", split)
        return split

    def _speech(self, row: Mapping[str, Any], text: str) -> tuple[Speech]:
        """Return a row's text to be spoken by the build, in a voice that the plan draws.

        Raises:
            ValueError: it has no text, or what belongs to a recording.
        """
        for name in ("audio", "speaker", "start", "end", "duration"):
            if self._value(row, name) not in (None, "", []):
                raise ValueError(f"{name} of a text that is to be spoken: write such rows in a block without `spoken`")
        if not text:
            raise ValueError("no text")
        return (Speech(text),)

    def _sound(self, row: Mapping[str, Any], base: Path) -> tuple[Recording, ...]:
        """Return the recordings of a row, cut to the segment it names; none if it has no audio column.

        Raises:
            ValueError: a file is missing, or the segment is none.
        """
        said = self._value(row, "audio")
        clips = said if isinstance(said, list) else [] if said is None or said == "" else [said]
        sound = tuple(self._recording(clip, base) for clip in clips)
        start, end, duration = (_seconds(self._value(row, name), name) for name in ("start", "end", "duration"))
        if end is None and start is not None and duration is not None:
            end = start + duration
        if start is None and end is None:
            return sound
        if len(sound) > 1:
            raise ValueError("a start or an end of several clips")
        if end is not None and end <= (start or 0.0):
            raise ValueError("a segment that ends before it begins")
        return tuple(Recording(part.path, start or 0.0, end, name=part.name) for part in sound)

    def _recording(self, clip: Any, base: Path) -> Recording:
        """Return the recording that a value names: a path, or a dictionary with a path.

        Raises:
            ValueError: it names none, or the file is missing.
        """
        if isinstance(clip, dict) and clip.keys() == {"stored", "name"} and isinstance(clip["stored"], str):
            return Recording(str(base / clip["stored"]), name=clip["name"])
        path, name = (clip.get("path"), clip.get("name")) if isinstance(clip, dict) else (clip, "")
        if not isinstance(path, str) or not path:
            raise ValueError("audio is no path")
        if re.match(r"\w+://", path):
            raise ValueError("audio is an address: download it and name the file", path)
        file = os.path.normpath((self.audio_root or base) / path)
        if not os.path.isfile(file):
            raise ValueError("no such file", path)
        return Recording(file, name=name or "")

    def _fact(self, code: str, name: str, found: FoundRow, sound: tuple[Sound, ...]) -> tuple[Fact, tuple[Sound, ...]]:
        """Return the fact of one task, and what is heard.

        Raises:
            ValueError: the row has no answer, or none of this kind.
        """
        (task, granularity), row = task_of(code), found.values
        value = self._value(row, name)
        if self._is_chat(name) or _is_conversation(value):
            messages, sound = self._conversation(value, sound, found.base)
            return Fact(task.code, messages[-1][1][0] or "", granularity=granularity, messages=messages), sound
        silent = not any(pick(row, each) is not _ABSENT for each in self._columns("audio"))
        if not sound and not (silent and task.code == "AQA"):
            raise ValueError("no audio")
        said = _text(value)
        if not said:
            wanted = {"transcript": "transcript", "open": "answer", "closed": "label", "label": "label"}
            raise ValueError(f"{task.code}: no {wanted.get(task.answer, 'answer')}")
        if task.code == "AQA":
            asked, given = (_text(self._value(row, each)) for each in ("question", "input"))
            if not asked:
                raise ValueError(f"{task.code}: no question")
            if sound:  # an input would be taken for the recording's words
                asked, given = f"{asked} {given}".strip(), ""
            return Fact(task.code, said, (), granularity, instruction=asked, input=given), sound
        if known := self.values.get(name) or task.labels:
            label = known.get(said, said) if isinstance(known, Mapping) else said
            choices = tuple(dict.fromkeys(known.values() if isinstance(known, Mapping) else known))
            if label not in choices:
                raise ValueError(f"{task.code}: label is not among {', '.join(choices)}")
            return Fact(task.code, label, choices if task.answer == "closed" else (), granularity), sound
        if task.code == "SGC":
            gender = labels.gender(said)
            return (gender[0] if gender else Fact("SGC", said, labels.GENDERS)), sound
        if task.numbers and not granularity:
            said = str(int(float(said))) if re.fullmatch(r"\d+\.0+", said) else said
            return Fact(task.code, said, (), "number" if task.answer == "closed" else ""), sound
        said = said.lower() if self.lowercase and task.answer == "transcript" else said
        return Fact(task.code, said, (), granularity), sound

    # --- conversations ----------------------------------------------------------------------------------------------

    def _is_chat(self, name: str) -> bool:
        """Tell whether a task's answers are whole conversations."""
        return name == "messages" or name in USUAL["messages"]

    def _conversation(
        self, turns: Any, sound: tuple[Sound, ...], base: Path
    ) -> tuple[tuple[tuple[str, tuple[str | None, ...]], ...], tuple[Sound, ...]]:
        """Return the messages of a conversation, and its clips in the order of their places.

        A turn is `{role, content}` (or ShareGPT's `{from, value}`); its content is a text, in which `<audio>` stands
        for the next clip, or a list of parts `{type: text, text}` and `{type: audio}`, which may name their file
        (`audio`, `path` or `url`). A single clip without a place comes before the first question.
        """
        if not _is_conversation(turns):
            raise ValueError("messages are no list of {role, content}")
        left, heard = list(sound), list[Sound]()
        messages = list[tuple[str, list[str | None]]]()
        for turn in turns:
            role, content = (
                turn.get(name, turn.get(other)) for name, other in (("role", "from"), ("content", "value"))
            )
            parts = list[str | None]()
            for part in _parts(content):
                if part["type"] == "text":
                    parts.append(part["text"].strip())
                    continue
                parts.append(None)
                if file := part.get("file"):
                    heard.append(self._recording(file, base))
                elif left:
                    heard.append(left.pop(0))
                else:
                    raise ValueError("messages have more places for audio than there are clips")
            role = str(role)
            messages.append((ROLES.get(role, role), [part for part in parts if part != ""]))
        if (strange := {role for role, _ in messages} - {"system", "user", "assistant"}) or messages[-1][
            0
        ] != "assistant":
            reason = (
                "a role other than system, user or assistant" if strange else "no answer of the assistant at the end"
            )
            raise ValueError(f"messages have {reason}")
        if left and (heard or len(left) > 1):
            raise ValueError("messages have fewer places for audio than there are clips")
        first = next((parts for role, parts in messages if role == "user"), None)
        if first is not None and left:
            first.insert(0, None)
        if (
            first is None
            or not all(parts for _, parts in messages)
            or messages[-1][1].count(None)
            or len(messages[-1][1]) > 1
        ):
            raise ValueError("messages have a turn that says nothing, no question, or an answer that is not one text")
        return tuple((role, tuple(parts)) for role, parts in messages), tuple(heard + left)

    def _id(self, found: FoundRow, sound: Sequence[Sound]) -> str:
        """Return an id that does not depend on where the row stands: its own, or its recording's name and a hash."""
        said = _text(self._value(found.values, "id"))
        if said:
            plain = re.sub(r"[^\w.\-/]", "_", said, flags=re.ASCII)
            mark = sha256(said.encode(errors="surrogatepass")).hexdigest()[:10]
            return plain if plain == said else f"{plain}-{mark}"  # ids that differ in other signs alone stay apart
        content = json.dumps(found.values, sort_keys=True, default=str).encode(errors="surrogatepass")
        recorded = next((Path(part.path).stem for part in sound if isinstance(part, Recording)), "row")
        stem = found.name or recorded
        return re.sub(r"[^\w.\-/]", "_", f"{stem[:80]}-{sha256(content).hexdigest()[:10]}", flags=re.ASCII)


def transcript_of(facts: Iterable[Fact]) -> str:
    """Return what a recording says, of the facts about it; "" if none tells."""
    return next((fact.target for fact in facts if fact.task == "ASR"), "")


def pick(row: Any, column: str) -> Any:
    """Return the value of a column, or of `a.b` within nested ones (of a list of rows, the list of theirs).

    Returns:
        `_ABSENT` if there is no such column.
    """
    if isinstance(row, Mapping):
        if column in row:
            return row[column]
        first, dot, rest = column.partition(".")
        while dot:
            if first in row and (value := pick(row[first], rest)) is not _ABSENT:
                return value
            more, dot, rest = rest.partition(".")
            first = f"{first}.{more}"
    elif isinstance(row, list):
        found = [pick(each, column) for each in row]
        return found if found and _ABSENT not in found else _ABSENT
    return _ABSENT


def column_paths(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the columns of a row, nested ones as `a.b`."""
    for name, value in row.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in column_paths(value))


def task_of(code: str) -> tuple[Task, str]:
    """Return a task and its variant by what a block calls it: "SGC", "EIE.sentiment".

    Raises:
        ValueError: there is no such task or variant, or the task has only variants.
    """
    name, _, granularity = code.partition(".")
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; {nearest(name, TASKS)}there are {', '.join(TASKS)}")
    variants = GRANULARITIES.get(name, ())
    if granularity and granularity not in variants:
        raise ValueError(f"no variant {code!r}; {name} has {', '.join(variants) or 'none'}")
    if name == "EIE" and not granularity:
        raise ValueError(f"say which variant of EIE: {' or '.join(f'EIE.{variant}' for variant in variants)}")
    return TASKS[name], granularity


def _reject(where: str, error: ValueError) -> Reject:
    """Return the reject of an error, whose first argument is the reason and whose second, if any, is the value."""
    reason, *value = error.args
    return Reject(where + "".join(f" ({each[:200]})" for each in value), reason)


def _is_conversation(value: Any) -> bool:
    """Tell whether a value is a list of turns."""
    turns = isinstance(value, list) and value
    return bool(turns) and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a turn's content: `{type: text, text}` or `{type: audio}`, with its `file` if it names one.

    Raises:
        ValueError: it is neither a text nor a list of such parts.
    """
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield from parts_of(part["text"])
        elif kind in ("audio", "input_audio"):
            yield {
                "type": "audio",
                "file": next((part[key] for key in ("audio", "path", "url") if part.get(key)), None),
            }
        else:
            raise ValueError("a message whose content is neither text nor audio")


def _text(value: Any) -> str:
    """Return a text, or a number or truth as a text, without space around it; "" for nothing, as pandas' NaN is.

    Raises:
        ValueError: it is a list or a dictionary.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError("a value that should be text is a list or has columns of its own")
    return str(value).strip()


def _seconds(value: Any, name: str) -> float | None:
    """Return a number of seconds; None for nothing.

    Raises:
        ValueError: it is no number of 0 or more.
    """
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is not a number of seconds")
    return seconds
