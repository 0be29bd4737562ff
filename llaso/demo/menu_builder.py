"""Building the menu of the demo page: from a quickstart's own corpus, otherwise from all tasks.

Instructions, labels and voices come from `dataset_scripts`; the page reads plain files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dataset_scripts import labels, musical_notes
from dataset_scripts.clips import ClipStore
from dataset_scripts.conversations import sound_from_json, write
from dataset_scripts.instructions import templates
from dataset_scripts.sources import cremad, fake_or_real, meld, nsynth, quickstart, vctk, vocalsound
from dataset_scripts.synthesize import backend
from dataset_scripts.task_forms import GRANULARITIES
from llaso_common.schema import TASK_DEFINITION
from llaso_common.tasks import PAPER_TASKS, TASKS, defined_tasks

from .menu import Menu, MenuExample, MenuTask

EXAMPLES = {
    ("ASR", "text_audio"): "Write down what is said",
    ("AQA", "text_audio"): "Ask about a story",
    ("AQA", "audio_text"): "Ask aloud about a text",
    ("AQA", "audio"): "Ask aloud about a spoken story",
    ("SGC", "text_audio"): "Female or male?",
    ("AC", "text_audio"): "Which accent?",
    ("PR", "text_audio"): "Write down the sounds",
    ("EE", "text_audio"): "Find what is named",
    ("IC", "text_audio"): "Name the instrument",
}
"""Titles of the examples by task and format."""


def build_menu(model: str, folder: Path) -> Menu:
    """Write a menu, with tasks and examples for a model, into a folder.

    Args:
        model: a folder or a Hub id. If a quickstart wrote the model, its evaluation corpus is used, with the labels
            that this model knows and recordings that it was not trained on.
        folder: folder for the menu and its recordings.

    Raises:
        ValueError: the corpus beside the model cannot be read.
    """
    corpus = Path(model).expanduser().resolve().parent / "llaso-eval"
    if corpus.is_dir():
        rows = list(_rows(corpus, ("id", "task", "modality", "messages", "choices", "target", "speaker")))
        TASKS.declare(defined_tasks((row.get(TASK_DEFINITION) for row in rows), str(corpus)), str(corpus))
        tasks = _tasks_of(rows)
        chosen = _select_examples(rows)
        sounds = {row["id"]: row["audio"][0]["bytes"] for row in _rows(corpus, ("id", "audio"), set(chosen))}
        examples = [(row, sounds[id]) for id, row in chosen.items()]
    else:
        tasks = _all_tasks()
        examples = list(_synthesized_rows())
    menu = Menu(tasks, tuple(_example(row, sound, folder, tasks) for row, sound in examples), folder)
    menu.write()
    return menu


def _rows(corpus: Path, columns: tuple[str, ...], ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield rows of the corpus's test split, or only those with the given ids."""
    wanted = [("id", "in", ids)] if ids is not None else None
    try:
        for file in sorted(corpus.glob("data/*/test-*.parquet")):
            own = [TASK_DEFINITION] if TASK_DEFINITION in parquet.read_schema(file).names else []
            yield from parquet.read_table(file, columns=[*columns, *own], filters=wanted).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: {error}") from None


def _tasks_of(rows: list[dict[str, Any]]) -> tuple[MenuTask, ...]:
    """Return the tasks of a corpus, with their labels."""
    found = {}
    for row in rows:
        found[_variant(row)] = tuple(sorted(row["choices"]))
    return tuple(_task(code, granularity, choices) for (code, granularity), choices in found.items() if code != "AQA")


def _variant(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the task code and granularity at the end of a row's id."""
    code, _, granularity = row["id"].rpartition("/")[2].partition(".")
    return code, granularity


def _all_tasks() -> tuple[MenuTask, ...]:
    """Return every task, with the labels of the paper's corpora."""
    choices: dict[tuple[str, str], tuple[str, ...]] = {
        ("SGC", ""): labels.GENDERS,
        ("AC", "coarse"): tuple(labels.REGIONS),
        ("AC", "fine"): vctk.ACCENTS,
        ("AR", "coarse"): labels.COARSE_AGES,
        ("AR", "fine"): labels.AGE_GROUPS,
        ("EIE", "intensity"): tuple(dict.fromkeys(cremad.LEVELS.values())),
        ("EIE", "sentiment"): meld.SENTIMENTS,
        ("ER", ""): tuple(cremad.EMOTIONS.values()),
        ("SSD", ""): fake_or_real.KINDS,
        ("SV", ""): meld.FRIENDS,
        ("VSC", ""): tuple(vocalsound.SOUNDS.values()),
        ("IC", ""): nsynth.FAMILIES,
        ("ISC", ""): nsynth.KINDS,
        ("VC", ""): tuple(map(str, musical_notes.VELOCITIES)),
    }
    return tuple(
        _task(task.code, granularity, choices.get((task.code, granularity), ()))
        for task in PAPER_TASKS.values()
        for granularity in GRANULARITIES.get(task.code, ("",))
        if task.code != "AQA"  # its instruction is the visitor's own question
    )


def _task(code: str, granularity: str, choices: tuple[str, ...]) -> MenuTask:
    """Return a task of the list, in its first standardised wording."""
    return MenuTask(_name(code, granularity), templates(code, granularity)[0].text, choices)


def _name(code: str, granularity: str) -> str:
    name = TASKS[code].name
    return name[0].upper() + name[1:] + (f" ({granularity})" if granularity else "")


def _select_examples(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one row for each of EXAMPLES by its id, preferring recordings of people."""
    chosen = {}
    for task, modality in EXAMPLES:
        fitting = [
            row for row in rows if (row["task"], row["modality"]) == (task, modality) and not _has_written_part(row)
        ]
        if fitting:
            row = min(fitting, key=lambda row: (not row["speaker"], row["id"]))
            chosen[row["id"]] = row
    return chosen


def _has_written_part(row: Mapping[str, Any]) -> bool:
    """Return whether a spoken question has a written part, for which the page has no field."""
    return row["modality"] == "audio" and bool(_text(row))


def _text(row: Mapping[str, Any]) -> str:
    return " ".join(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def _synthesized_rows() -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield rows as a quickstart builds them, with their sounds; only musical notes if espeak is not installed."""
    try:
        backend("espeak")
        spoken = {"utterances": 120, "questions": 60}
    except ValueError:
        spoken = {"utterances": 0, "questions": 0}
    items = quickstart.read(Path(), notes=20, seed=0, real=False, **spoken)
    voices = quickstart.voices()["test"]
    rows = [write("eval", quickstart.SOURCE, item, fact, "test", 0, voices) for item in items for fact in item.facts]
    with tempfile.TemporaryDirectory() as kept:
        store = ClipStore(kept)
        for row in _select_examples(rows).values():
            yield row, store.clip(tuple(map(sound_from_json, row["clips"][0])))


def _example(row: Mapping[str, Any], sound: bytes, folder: Path, tasks: Sequence[MenuTask]) -> MenuExample:
    """Convert a row to an example, and write its recording into the folder."""
    code, modality = row["task"], row["modality"]
    name = _name(*_variant(row))
    recording = f"{code}-{modality}.flac"
    (folder / recording).write_bytes(sound)
    return MenuExample(
        title=EXAMPLES[code, modality],
        modality=modality,
        recording=recording,
        task=name if name in {task.name for task in tasks} else "",
        instruction=_text(row) if modality == "text_audio" else "",
        choices=tuple(row["choices"]),
        content=_text(row) if modality == "audio_text" else "",
        target=row["target"],
    )
