"""The menu of the page: tasks with instructions and choices, and examples, stored in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MENU_FILE = "menu.json"


@dataclass(frozen=True)
class MenuTask:
    """One task of the list.

    Args:
        name: name in the list.
        instruction: standard wording; "{choices}" is replaced by the choices.
        choices: labels to choose from, if the task has any.
    """

    name: str
    instruction: str
    choices: tuple[str, ...] = ()

    def with_choices(self, choices: Sequence[str]) -> str:
        """Return the instruction with its choices listed as "a or b" or "a, b or c"."""
        listed = " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))
        return self.instruction.replace("{choices}", listed)


@dataclass(frozen=True)
class MenuExample:
    """A question with its recording.

    Args:
        title: label of its button.
        modality: text_audio, audio_text or audio.
        recording: name of an audio file in the menu's folder.
        task: name of one of the menu's tasks, or "".
        instruction: written instruction, in text_audio.
        choices: choices listed in the instruction.
        content: text that the spoken instruction is about, in audio_text.
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
    """Tasks, examples, and the folder with the recordings of the examples."""

    tasks: tuple[MenuTask, ...]
    examples: tuple[MenuExample, ...]
    folder: Path

    def write(self) -> None:
        """Write `menu.json` into the folder."""
        content = {"tasks": [asdict(task) for task in self.tasks], "examples": [asdict(one) for one in self.examples]}
        (self.folder / MENU_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Menu:
        """Read a menu that `write` wrote."""
        folder = Path(folder)
        content = json.loads((folder / MENU_FILE).read_text(encoding="utf-8"))
        tasks = [MenuTask(**{**task, "choices": tuple(task["choices"])}) for task in content["tasks"]]
        examples = [MenuExample(**{**one, "choices": tuple(one["choices"])}) for one in content["examples"]]
        return cls(tuple(tasks), tuple(examples), folder)
