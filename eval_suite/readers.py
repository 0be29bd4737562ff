"""Reads answers from disk: a folder of the released files, or a predictions folder of `llaso eval generate`.

Out come rows grouped by file, in file order, with the judge's scores beside them. A line that cannot be read is an
error that names file and line; a judgement that cannot be read is missing, and counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from llaso_common import tasks

from .answer_records import GENERATION
from .parsing import LabelSet
from .speed import read_speed
from .task_metrics import MODALITIES, TASKS, declare
from .text_normalization import fold

logger = logging.getLogger(__name__)

PREDICTION_FIELDS = ("answer", "result", "prediction")
"""Names of the field that holds the model's text in the released files; they differ between systems."""
JUDGE_FOLDERS = ("judge", "gpt_result")
"""Beside the answers: our judge's records, or the released ones."""
JUDGE_SCALE = (1, 5)

_FINITE_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d+)?")
_JUDGE_SCORE = re.compile(r"\s*Score:\s*(\d+)\b")
_MICROPHONE = re.compile(r"(?:_mic[12]|-headset)(?=\.\w+$)")
"""VCTK and SLURP keep several microphones of one utterance; they are one source recording."""


@dataclass(slots=True)
class AnsweredRow:
    """One answer with everything needed to score it."""

    file: str
    id: str
    where: str  # "path:line" or "path, record i", for messages
    task: str
    modality: str
    source: str
    prediction: str | None  # None only if `error` says why
    reference: str
    choices: tuple[str, ...]
    error: str | None
    cluster: str  # source recording, for the bootstrap
    instruction: str = ""  # what the model was asked, for judges and readers
    judge_score: float | None = None
    repeat_of: str | None = None  # the row that this one repeats, if a row was asked several times
    attributes: dict[str, str] = field(default_factory=dict)  # of recording and instruction, for scores by group
    speed: dict[str, Any] | None = None  # what the answer took, see `speed.summarize_speed`

    @property
    def category(self) -> str:
        return TASKS[self.task].category


@dataclass
class SystemAnswers:
    """All answers of one system.

    `files` keeps the rows by file; `judged` says which files have judgements beside them and `judge_unreadable`
    how many lines of theirs could not be used; `published_abstention` holds the released counts if there are any;
    `generation` says how our own predictions were made, as `generation.json` beside them does, and `speed` how fast.
    """

    system: str
    files: dict[str, list[AnsweredRow]]
    judged: set[str] = field(default_factory=set)
    judge_unreadable: dict[str, int] = field(default_factory=dict)
    published_abstention: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] | None = None
    speed: list[dict[str, Any]] = field(default_factory=list)


@cache
def _data(name: str) -> dict[str, Any]:
    return json.loads((package_files(__package__) / "data" / name).read_text(encoding="utf-8"))


def released_files() -> dict[str, dict[str, Any]]:
    """Return the manifest of the 44 released files: task, modality, rows and choices by file name."""
    return _data("released_files.json")["files"]


def label_set(task: str, choices: tuple[str, ...]) -> LabelSet:
    """Return the labels of a row with the declared aliases of its task."""
    own = tasks.TASKS[task].aliases if task in tasks.TASKS else {}
    return _label_set(task, choices, tuple((fold(label), tuple(words)) for label, words in own.items()))


@cache
def _label_set(task: str, choices: tuple[str, ...], own: tuple[tuple[str, tuple[str, ...]], ...]) -> LabelSet:
    return LabelSet(choices, dict(own) or _data("aliases.json")["tasks"].get(task))


# Files ---------------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield non-empty lines with their numbers from 1. Split on newlines only: texts may hold U+2028 and the like."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a `.json` array or a `.jsonl` file, each with the place to name in messages."""
    if path.suffix == ".json":
        try:
            content = json.loads(_read_text(path), parse_constant=_reject_constant)
        except RecursionError as error:
            raise ValueError(f"{path}: nested too deeply to be a list of records") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: broken or truncated JSON ({error.msg})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected an array of records, found {type(content).__name__}")
        numbered = ((f"{path}, record {index}", record) for index, record in enumerate(content))
    else:
        numbered = ((f"{path}:{number}", _parse_line(path, number, line)) for number, line in _json_lines(path))
    for where, record in numbered:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, found {type(record).__name__}")
        yield where, record


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError(f"{path}:{number}: nested too deeply to be a record") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{number}: broken or truncated JSON ({error.msg}); generate this file again or correct the line"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def _text(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise ValueError(f"{where}: no field {key!r}")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be text, found {type(value).__name__}")
    return value


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Released files ------------------------------------------------------------------------------------------------


def _recording(path: str) -> str:
    """Return the source recording that an audio path stands for: one kind of slash, no microphone suffix."""
    return _MICROPHONE.sub("", path.replace("\\", "/"))


def _released_row(file: str, index: int, where: str, record: dict[str, Any], facts: dict[str, Any]) -> AnsweredRow:
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
        raise ValueError(f"{where}: 'conversations' must hold a question and its reference")
    fields = [name for name in PREDICTION_FIELDS if name in record]
    if len(fields) != 1:
        raise ValueError(
            f"{where}: expected the model's text in one of {', '.join(PREDICTION_FIELDS)}, found {fields or 'none'}"
        )
    voice = record.get("voice")
    if not isinstance(voice, list) or not all(isinstance(path, str) for path in voice):
        raise ValueError(f"{where}: 'voice' must be a list of audio paths")
    recording = "|".join(_recording(path) for path in voice)
    return AnsweredRow(
        file=file,
        id=str(index),
        where=where,
        task=facts["task"],
        modality=facts["modality"],
        source=recording.split("/")[0],
        prediction=_text(record, fields[0], where),
        reference=_text(turns[1], "value", f"{where}, second turn"),
        choices=tuple(facts.get("choices", ())),
        error=None,
        cluster=recording or f"{file}/{index}",
        instruction=str(turns[0].get("value", "")) if isinstance(turns[0], dict) else "",
    )


# Our own predictions -------------------------------------------------------------------------------------------


def task_of(task: str, choices: Sequence[str]) -> str:
    """Return the task that a row is scored as: an age without choices is a number of years."""
    return "AR_years" if task == "AR" and not choices else task


def _own_row(where: str, record: dict[str, Any]) -> AnsweredRow:
    task = _text(record, "task", where)
    error = record.get("error")
    if error is not None and not isinstance(error, str):
        raise ValueError(f"{where}: 'error' must be null or the reason, found {type(error).__name__}")
    prediction = record.get("prediction")
    if error is None:
        prediction = _text(record, "prediction", where)
    elif not (prediction is None or isinstance(prediction, str)):
        raise ValueError(f"{where}: 'prediction' must be text or null, found {type(prediction).__name__}")
    choices = record.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: 'choices' must be a list of texts")
    task = task_of(task, choices)
    if task not in TASKS:
        raise ValueError(
            f"{where}: unknown task {task!r}; tasks are {', '.join(TASKS)}. The definition of a corpus's own task is "
            f"in the {GENERATION} that `llaso eval generate` writes beside the answers: copy it here as well"
        )
    modality = _text(record, "modality", where)
    if modality not in MODALITIES:
        raise ValueError(f"{where}: unknown modality {modality!r}; modalities are {', '.join(MODALITIES)}")
    file, row_id = _text(record, "file", where), _text(record, "id", where)
    return AnsweredRow(
        file=file,
        id=row_id,
        where=where,
        task=task,
        modality=modality,
        source=str(record.get("source", "")),
        prediction=prediction,
        reference=_text(record, "reference", where),
        choices=tuple(choices),
        error=error,
        cluster=str(record.get("cluster") or f"{file}/{row_id}"),
        instruction=str(record.get("instruction", "")),
        repeat_of=record.get("repeat_of"),
        attributes=_attributes(record, where),
    )


def _attributes(record: dict[str, Any], where: str) -> dict[str, str]:
    attributes = record.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise ValueError(f"{where}: 'attributes' must be an object of texts")
    return attributes


# Judgements ----------------------------------------------------------------------------------------------------


def judge_score(evaluation: Any) -> float | None:
    """Return the score that a judge gave: N of a text that begins "Score: N", or a number 1..5; else None."""
    if isinstance(evaluation, str):
        match = _JUDGE_SCORE.match(evaluation)
        evaluation = int(match[1]) if match else None
    if isinstance(evaluation, bool) or not isinstance(evaluation, int | float):
        return None
    return float(evaluation) if JUDGE_SCALE[0] <= evaluation <= JUDGE_SCALE[1] else None


def _attach_judgements(answers: SystemAnswers, folder: Path) -> None:
    """Put the scores of `folder/<file>.jsonl` on their rows; lines that cannot be used are counted."""
    for path in sorted(folder.glob("*.jsonl")):
        rows = answers.files.get(path.stem)
        if rows is None:
            logger.warning("%s: judgements of a file that has no answers here", path)
            continue
        answers.judged.add(path.stem)
        by_id = {row.id: row for row in rows}
        unusable = 0
        for _, line in _json_lines(path):
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                unusable += 1
                continue
            if not isinstance(record, dict):
                unusable += 1
                continue
            row = by_id.get(str(record.get("id", record.get("index"))))
            score = judge_score(record["score"] if "score" in record else record.get("evaluation"))
            if row is None or score is None or not _judges(record, row):
                unusable += 1
            else:
                row.judge_score = score
        if unusable:
            answers.judge_unreadable[path.stem] = unusable
            logger.warning("%s: %d judgements cannot be used; they count as missing", path, unusable)


def _judges(record: dict[str, Any], row: AnsweredRow) -> bool:
    """Return whether a judgement is of this row's reference and answer, as far as it says."""
    answer = record.get("predicted", record.get("prediction", row.prediction))
    if not isinstance(answer, str):
        return False
    return record.get("reference", row.reference) == row.reference and answer.strip() == (row.prediction or "").strip()


def _published_abstention(folder: Path) -> dict[str, float]:
    """Return the abstention rates (percent) published beside the released answers."""
    path = folder / "abstention" / "instruction_follow_stats.jsonl"
    rates: dict[str, float] = {}
    if path.is_file():
        for where, record in _records(path):
            rate = record.get("abstention_rate")
            if not isinstance(rate, int | float):
                raise ValueError(f"{where}: 'abstention_rate' must be a number")
            rates[Path(_text(record, "file", where)).stem] = float(rate)
    return rates


# The folder ----------------------------------------------------------------------------------------------------


def _answer_files(folder: Path) -> list[Path]:
    """Return the files of `folder` that hold answers: every `.jsonl`, and the released `.json` files."""
    known = released_files()
    lines = sorted(folder.glob("*.jsonl"))
    arrays = []
    for path in sorted(folder.glob("*.json")):
        if path.stem in known:
            arrays.append(path)
        elif path.stem.endswith("_test"):
            raise ValueError(f"{path}: not one of the {len(known)} released files; its task and labels are unknown")
    both = {path.stem for path in lines} & {path.stem for path in arrays}
    if both:
        raise ValueError(f"{folder}: {', '.join(sorted(both))} lies here twice, as .json and as .jsonl; keep one")
    return sorted([*lines, *arrays], key=lambda path: path.stem)


def read(path: Path | str, system: str | None = None) -> SystemAnswers:
    """Read all answers of one system.

    Args:
        path: a folder of released files (`.json` or `.jsonl`, judge and abstention folders beside them) or of our
            own predictions (`<file>.jsonl`, with a `judge/` folder if they were judged).
        system: its name; the folder's name by default.

    Returns:
        The rows by file, with judgements and published counts.

    Raises:
        ValueError: a broken line, a missing or mistyped field, an unknown task or file, a repeated id, a reference
            outside its choices, or a folder without answers; the message names file and line.
        FileNotFoundError: `path` is not a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of answers")
    answers = SystemAnswers(system=system or folder.resolve().name, files={})
    if (folder / GENERATION).is_file():
        answers.generation = json.loads((folder / GENERATION).read_text(encoding="utf-8")) or None
        declare((answers.generation or {}).get("tasks", {}), str(folder / GENERATION))
    known = released_files()
    seen: dict[tuple[str, str], str] = {}
    for source in _answer_files(folder):
        answers.digests[source.name] = digest(source)
        count, name, array = 0, source.stem, source.suffix == ".json"
        for index, (where, record) in enumerate(_records(source)):
            if array or "conversations" in record:
                if name not in known:
                    raise ValueError(f"{where}: {name!r} is not one of the {len(known)} released files")
                row = _released_row(name, index, where, record, known[name])
            else:
                row = _own_row(where, record)
            key = (row.file, row.id)
            if key in seen:
                raise ValueError(f"{where}: id {row.id!r} of {row.file} was already used at {seen[key]}")
            seen[key] = where
            check_row(row)
            answers.files.setdefault(row.file, []).append(row)
            count += 1
        if not count:
            raise ValueError(f"{source}: no records")
    if not answers.files:
        raise ValueError(f"{folder}: no answers here; expected <file>.json or <file>.jsonl")
    for file, rows in answers.files.items():
        kinds = {(row.task, row.modality) for row in rows}
        if len(kinds) > 1:
            raise ValueError(f"{rows[0].where}: {file} mixes tasks or modalities: {sorted(kinds)}")
    for name in JUDGE_FOLDERS:
        if (folder / name).is_dir():
            _attach_judgements(answers, folder / name)
    answers.published_abstention = _published_abstention(folder)
    timed = read_speed(folder)
    answers.speed = timed["runs"]
    for rows in answers.files.values() if timed["rows"] else ():
        for row in rows:
            row.speed = timed["rows"].get(row.id)
    return answers


def check_row(row: AnsweredRow) -> None:
    """Check that a row's reference fits its task.

    Raises:
        ValueError: a closed set without choices, a reference outside of them, or a reference that is no number
            though the task asks for one.
    """
    kind = TASKS[row.task].kind
    if kind == "closed" and not row.choices:
        raise ValueError(f"{row.where}: {row.task} is a closed set but the row has no 'choices'")
    if row.choices and kind in ("closed", "label"):
        try:
            label_set(row.task, row.choices).canonical(row.reference)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
    if kind == "number":
        if not _FINITE_NUMBER.fullmatch(row.reference.strip()):
            raise ValueError(f"{row.where}: the reference {row.reference!r} of {row.task} is not a number")
