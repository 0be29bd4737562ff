"""What the page offers: tasks with their instructions and choices, and examples to start from; a folder on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MENU_FILE = "menu.json"


@dataclass(frozen=True)
class Task:
    """One task of the list.

    Args:
        name: as the list shows it.
        instruction: its standard wording; "{choices}" stands where the choices go.
        choices: the labels to choose from, where the task has such.
    """

    name: str
    instruction: str
    choices: tuple[str, ...] = ()

    def written(self, choices: Sequence[str]) -> str:
        """The instruction with choices as a person lists them: "a or b", "a, b or c"."""
        listed = " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))
        return self.instruction.replace("{choices}", listed)


@dataclass(frozen=True)
class Example:
    """A question with its recording.

    Args:
        title: as its button shows it.
        modality: text_audio, audio_text or audio.
        recording: a file beside the menu.
        task: name of one of the menu's tasks, or "".
        instruction: written, in text_audio.
        choices: those that stand in the instruction.
        content: the text that a spoken instruction is about, in audio_text.
        target: the right answer.
    """

    title: str
    modality: str
    recording: str
    task: str = ""
    instruction: str = ""
    choices: tuple[str, ...] = ()
    content: str = ""
    target: str = ""


@dataclass(frozen=True)
class Menu:
    """Tasks, examples, and the folder of the examples' recordings."""

    tasks: tuple[Task, ...]
    examples: tuple[Example, ...]
    folder: Path

    def write(self) -> None:
        """Keep it as `menu.json` in its folder."""
        kept = {"tasks": [asdict(task) for task in self.tasks], "examples": [asdict(one) for one in self.examples]}
        (self.folder / MENU_FILE).write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Menu:
        """The menu that `write` kept."""
        folder = Path(folder)
        kept = json.loads((folder / MENU_FILE).read_text(encoding="utf-8"))
        tasks = [Task(**{**task, "choices": tuple(task["choices"])}) for task in kept["tasks"]]
        examples = [Example(**{**one, "choices": tuple(one["choices"])}) for one in kept["examples"]]
        return cls(tuple(tasks), tuple(examples), folder)
