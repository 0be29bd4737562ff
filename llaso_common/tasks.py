"""The tasks: code, names, category, kind of answer and formats.

The twenty of LLaSO follow the paper's Table 2 (arXiv 2508.15418). A corpus can define further ones; each row of such a
task carries the definition (column `task_definition`), and whatever reads the corpus declares it in `TASKS`. How rows
of a task are built is said in `dataset_scripts/task_forms.py`, how its answers are scored in
`eval_suite/task_metrics.py`.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

MODALITIES = ("text_audio", "audio_text", "audio")
"""Modality formats: X(t,a) text instruction + audio; X(a,t) spoken instruction + text; X(a) audio alone."""
CATEGORIES = ("linguistic", "semantic", "paralinguistic")

AnswerKind = Literal["transcript", "phonemes", "closed", "label", "number", "slots", "pronunciation", "open"]
"""What an answer is: a transcript; IPA; one of the row's choices; a label whose choices the prompt does not give; a
number; text with `[type : value]` slots; scores of a pronunciation; free text for a judge."""


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        code: as rows name it, e.g. "SGC".
        name: in the paper's words.
        short_name: for tables.
        category: one of `CATEGORIES`.
        answer: what an answer is.
        formats: the modality formats that it can be posed in.
        numbers: bounds of its answers if they are, or may be, numbers. If both are whole, so are the answers.
        labels: the closed set of a task that a corpus defines; the paper's tasks have one set a corpus, in its rows.
        aliases: further words for a label, by label.
        instruction: the standard wording of a task that a corpus defines.
        instructions: (style, text) of all its wordings, known only while a corpus is built.
    """

    code: str
    name: str
    short_name: str
    category: str
    answer: AnswerKind
    formats: tuple[str, ...] = ("text_audio", "audio")
    numbers: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    instruction: str = ""
    instructions: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if fault := self._fault():
            raise ValueError(fault)

    def _fault(self) -> str:
        """Say what is wrong with the definition, as "key: what and remedy", or ""."""
        if self.answer not in get_args(AnswerKind):
            return f"kind: there is no {self.answer!r}; there are {', '.join(get_args(AnswerKind))}"
        if self.category not in CATEGORIES:
            return f"category: there is no {self.category!r}; there are {', '.join(CATEGORIES)}"
        if not self.formats or (unknown := [name for name in self.formats if name not in MODALITIES]):
            return f"formats: {unknown if self.formats else 'none'}; choose from {', '.join(MODALITIES)}"
        if self.numbers and not self.numbers[0] < self.numbers[1]:
            return (
                f"bounds: {self.numbers[0]} is not below {self.numbers[1]}; give the lowest answer, then the highest"
            )
        wordings: dict[str, str] = {}
        for label in self.labels:
            if not (folded := fold_label(label)):
                return f"labels: {label!r} has no letter or digit; name what it means"
            if folded in wordings:
                return f"labels: {wordings[folded]!r} and {label!r} cannot be told apart in an answer; rename one"
            wordings[folded] = label
        for label, words in self.aliases.items():
            if label not in self.labels:
                return f"aliases: {label!r} is not among the labels {', '.join(self.labels)}; correct it"
            for word in words:
                if not fold_label(word) or wordings.get(fold_label(word), label) != label:
                    meant = wordings.get(fold_label(word), "no word")
                    return f"aliases: {word!r} of {label!r} is already {meant!r}; take it away from one of them"
                wordings[fold_label(word)] = label
        return ""

    def holds(self, number: str) -> bool:
        """Return whether a text is a number within the bounds, whole if both bounds are."""
        low, high = self.numbers or (0, 0)
        whole = isinstance(low, int) and isinstance(high, int)
        written = re.fullmatch(r"-?[0-9]{1,15}" if whole else r"-?[0-9]{1,15}(\.[0-9]+)?", number)
        return bool(written) and low <= float(number) <= high

    def record(self) -> dict[str, Any]:
        """Return the definition as rows store it: plain JSON without its defaults and without `instructions`."""
        kept: dict[str, Any] = {
            "code": self.code,
            "name": self.name,
            "category": self.category,
            "answer": self.answer,
            "formats": list(self.formats),
            "numbers": self.numbers and list(self.numbers),
            "labels": list(self.labels),
            "aliases": {label: list(words) for label, words in self.aliases.items()},
            "instruction": self.instruction,
        }
        return {name: value for name, value in kept.items() if value}

    @classmethod
    def from_record(cls, record: Any) -> Task:
        """Read what `record` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(
                code=_text(record["code"]),
                name=_text(record["name"]),
                short_name=_text(record["name"]),
                category=record["category"],
                answer=record["answer"],
                formats=tuple(record["formats"]),
                numbers=tuple(record["numbers"]) if record.get("numbers") else None,
                labels=tuple(map(_text, record.get("labels", ()))),
                aliases={label: tuple(map(_text, words)) for label, words in record.get("aliases", {}).items()},
                instruction=_text(record.get("instruction", "")),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this does not define a task ({type(error).__name__}: {error}): {record}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def fold_label(label: str) -> str:
    """Fold a label as scoring compares answers: width, case, blanks, dashes and final stops make no difference."""
    return re.sub(r"[\s_‐‑‒–—−~-]+", " ", unicodedata.normalize("NFKC", label).lower()).strip(" .!?。")


@functools.lru_cache(maxsize=256)
def _defined(definition: str) -> Task:
    try:
        return Task.from_record(json.loads(definition))
    except json.JSONDecodeError as error:
        raise ValueError(f"this does not define a task ({error}): {definition}") from error


def defined_tasks(definitions: Iterable[str | None], where: str) -> list[Task]:
    """Return the tasks that the values of a column `task_definition` define, each once.

    Raises:
        ValueError: a value is no definition; the message begins with `where`.
    """
    try:
        return [_defined(text) for text in dict.fromkeys(definitions) if text]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; build the corpus again") from error


def task_of(row: Mapping[str, Any]) -> Task | None:
    """Return the task of a row: as the row defines it, else the paper's; None if neither is there."""
    if definition := row.get("task_definition"):
        try:
            task = _defined(definition)
        except ValueError:
            return None
        return task if task.code == row["task"] and task.code not in PAPER_TASKS else None
    return PAPER_TASKS.get(row["task"])


class TaskRegistry(Mapping[str, Task]):
    """The tasks declared in this process, by code: the paper's, then those that corpora have declared."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._where: dict[str, str] = {}

    def __getitem__(self, code: str) -> Task:
        return self._tasks[code]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def declare(self, tasks: Iterable[Task], where: str) -> None:
        """Add tasks; those that are declared already stay as they are.

        Args:
            tasks: to be added.
            where: what defines them, for messages.

        Raises:
            ValueError: a code is declared already with another definition.
        """
        for task in tasks:
            known = self._tasks.get(task.code)
            if known is not None and known != task:
                raise ValueError(
                    f"{where}: {task.code} is defined otherwise than in {self._where[task.code]}; give one of the two "
                    "tasks another code, or use them in separate processes"
                )
            if known is None or task.instructions:
                self._tasks[task.code] = task
                self._where[task.code] = where

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Remove, when the block ends, the tasks that were declared within it."""
        tasks, where = dict(self._tasks), dict(self._where)
        try:
            yield
        finally:
            self._tasks, self._where = tasks, where


_PARA = "paralinguistic"

PAPER_TASKS: dict[str, Task] = {
    task.code: task
    for task in (
        Task("ASR", "automatic speech recognition", "speech recognition", "linguistic", "transcript"),
        Task("AQA", "audio question answering", "audio question answering", "semantic", "open", MODALITIES),
        Task("SGC", "speaker gender classification", "speaker gender", _PARA, "closed"),
        Task("AC", "accent classification", "accent", _PARA, "closed"),
        # Age groups; some rows ask for years instead.
        Task("AR", "age recognition", "age group", _PARA, "closed", numbers=(18, 80)),
        Task("EIE", "emotion intensity estimation", "emotion intensity", _PARA, "closed"),
        Task("ER", "emotion recognition", "emotion", _PARA, "closed"),
        # A spoken question in a synthetic voice would reveal the answer, or hide it.
        Task("SSD", "synthetic speech detection", "synthetic speech detection", _PARA, "closed", ("text_audio",)),
        Task("SV", "speaker identification", "speaker identification", _PARA, "closed"),
        Task("PSWL", "pronunciation scoring, word level", "pronunciation, word level", _PARA, "pronunciation"),
        Task("PSSL", "pronunciation scoring, sentence level", "pronunciation, sentence level", _PARA, "pronunciation"),
        Task("PR", "phoneme recognition", "phoneme recognition", _PARA, "phonemes", MODALITIES),
        Task("SCR", "speech command recognition", "speech command", _PARA, "label"),
        Task("IP", "intent prediction", "intent", _PARA, "label", MODALITIES),
        Task("EE", "entity extraction", "entity extraction", _PARA, "slots", MODALITIES),
        Task("VSC", "vocal sound classification", "vocal sound", _PARA, "closed"),
        Task("IC", "instrument classification", "instrument", _PARA, "closed"),
        Task("ISC", "instrument source classification", "instrument source", _PARA, "closed"),
        Task("PP", "pitch prediction", "pitch, MIDI", _PARA, "number", numbers=(0, 127)),
        Task("VC", "velocity classification", "note velocity", _PARA, "closed"),
    )
}

TASKS = TaskRegistry()
TASKS.declare(PAPER_TASKS.values(), "the paper")
