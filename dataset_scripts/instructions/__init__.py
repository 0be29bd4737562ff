"""The instruction texts, our own wording: one file a task, a line an instruction, under headings for the four styles.

`TASK.txt` holds the twenty instructions of a task, `TASK.granularity.txt` those of a variant that needs other words
(e.g. `AR.number.txt`), and `ASR.align.txt` the eighteen of LLaSO-Align, which have no styles. In tasks with a closed
set, `{choices}` stands where the labels go.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from llaso_common.tasks import TASKS

STYLES = ("standardised", "contextualised", "stylistic", "fine_grained")
FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Template:
    """One instruction: its id (e.g. "SGC/07"), its style ("" for those of ASR.align) and its text."""

    id: str
    style: str
    text: str


def templates(task: str, granularity: str = "") -> tuple[Template, ...]:
    """Return the instructions of a task, in the order of their file.

    Args:
        task: code of a task.
        granularity: variant; its own file is used if there is one, else the task's.

    Returns:
        Those of the task's file. Of a task that a corpus defines, those that it was declared with: all while a corpus
        is built, the standard wording otherwise.

    Raises:
        ValueError: there is no file for the task, or it has a heading that is no style.
    """
    known = TASKS.get(task)
    if known is None or not known.instruction:
        return _of_package(task, granularity)
    texts = known.instructions or (("", known.instruction),)
    return tuple(Template(f"{task}/{number:02d}", style, text) for number, (style, text) in enumerate(texts, start=1))


@functools.cache
def _of_package(task: str, granularity: str) -> tuple[Template, ...]:
    name = f"{task}.{granularity}"
    if not granularity or not (FOLDER / f"{name}.txt").exists():
        name = task
    file = FOLDER / f"{name}.txt"
    if not file.exists():
        raise ValueError(f"no instructions for task {task!r}: {file} is missing")
    return tuple(
        Template(f"{name}/{number:02d}", style, text)
        for number, (style, text) in enumerate(read_instructions(file), start=1)
    )


def read_instructions(file: Path) -> list[tuple[str, str]]:
    """Read the style ("" without) and text of each line of an instruction file.

    Raises:
        ValueError: a heading is no style.
    """
    found, style = [], ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("["):
            style = line.strip("[]")
            if style not in STYLES:
                raise ValueError(f"{file}:{number}: no style {style!r}; there are {', '.join(STYLES)}")
        elif line.strip():
            found.append((style, line))
    return found
