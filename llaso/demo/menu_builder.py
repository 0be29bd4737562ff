"""What the demo page offers, gathered from the data room: of a quickstart its own corpus, else all tasks.

Part of the roof: it calls the data room for instructions, labels and voices, and hands the page plain files.
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
from dataset_scripts.task_forms import TASKS

from .menu import Example, Menu, Task

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
"""Tasks and formats that get an example where the corpus has one, and its title."""


def gather(model: str, folder: Path) -> Menu:
    """A menu in `folder`: tasks and examples for a model.

    Args:
        model: a folder or a Hub id. The evaluation corpus that a quickstart left beside a model is used: it holds
            the labels this model knows, and recordings it never heard.
        folder: where the menu and its recordings go.

    Raises:
        ValueError: the corpus beside the model cannot be read.
    """
    corpus = Path(model).expanduser().resolve().parent / "llaso-eval"
    if corpus.is_dir():
        rows = list(_rows(corpus, ("id", "task", "modality", "messages", "choices", "target", "speaker")))
        tasks = _tasks_of(rows)
        chosen = _chosen(rows)
        sounds = {row["id"]: row["audio"][0]["bytes"] for row in _rows(corpus, ("id", "audio"), set(chosen))}
        examples = [(row, sounds[id]) for id, row in chosen.items()]
    else:
        tasks = _all_tasks()
        examples = list(_made())
    menu = Menu(tasks, tuple(_example(row, sound, folder, tasks) for row, sound in examples), folder)
    menu.write()
    return menu


def _rows(corpus: Path, columns: tuple[str, ...], ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the corpus's test split, those of `ids` only where given."""
    wanted = [("id", "in", ids)] if ids is not None else None
    try:
        for file in sorted(corpus.glob("data/*/test-*.parquet")):
            yield from parquet.read_table(file, columns=list(columns), filters=wanted).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: {error}") from None


def _tasks_of(rows: list[dict[str, Any]]) -> tuple[Task, ...]:
    """The tasks of a corpus, with the labels it chooses from."""
    found = {}
    for row in rows:
        found[_variant(row)] = tuple(sorted(row["choices"]))
    return tuple(_task(code, granularity, choices) for (code, granularity), choices in found.items() if code != "AQA")


def _variant(row: Mapping[str, Any]) -> tuple[str, str]:
    """Code and granularity, which a row's id ends in."""
    code, _, granularity = row["id"].rpartition("/")[2].partition(".")
    return code, granularity


def _all_tasks() -> tuple[Task, ...]:
    """Every task, with the labels of the corpora that the paper draws it from."""
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
        for task in TASKS.values()
        for granularity in task.granularities or ("",)
        if task.code != "AQA"  # its instruction is the visitor's own question
    )


def _task(code: str, granularity: str, choices: tuple[str, ...]) -> Task:
    """A task of the list, in its first standardised wording."""
    return Task(_name(code, granularity), templates(code, granularity)[0].text, choices)


def _name(code: str, granularity: str) -> str:
    name = TASKS[code].name
    return name[0].upper() + name[1:] + (f" ({granularity})" if granularity else "")


def _chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One row for each of EXAMPLES, by its id: a person's recording where there is one."""
    chosen = {}
    for task, modality in EXAMPLES:
        fitting = [row for row in rows if (row["task"], row["modality"]) == (task, modality) and not _carried(row)]
        if fitting:
            row = min(fitting, key=lambda row: (not row["speaker"], row["id"]))
            chosen[row["id"]] = row
    return chosen


def _carried(row: Mapping[str, Any]) -> bool:
    """Whether a written sentence goes with a question that is spoken throughout; the page has no place for it."""
    return row["modality"] == "audio" and bool(_text(row))


def _text(row: Mapping[str, Any]) -> str:
    return " ".join(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def _made() -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows as a quickstart would build them, and their sounds: notes alone where no speech can be synthesized."""
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
        for row in _chosen(rows).values():
            yield row, store.clip(tuple(map(sound_from_json, row["clips"][0])))


def _example(row: Mapping[str, Any], sound: bytes, folder: Path, tasks: Sequence[Task]) -> Example:
    """A row as the page shows it; its recording is written into the folder."""
    code, modality = row["task"], row["modality"]
    name = _name(*_variant(row))
    recording = f"{code}-{modality}.flac"
    (folder / recording).write_bytes(sound)
    return Example(
        title=EXAMPLES[code, modality],
        modality=modality,
        recording=recording,
        task=name if name in {task.name for task in tasks} else "",
        instruction=_text(row) if modality == "text_audio" else "",
        choices=tuple(row["choices"]),
        content=_text(row) if modality == "audio_text" else "",
        target=row["target"],
    )
