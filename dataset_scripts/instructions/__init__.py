"""The instruction texts, our own wording: one file a task, a line an instruction, under headings for the four styles.

`TASK.txt` holds the twenty instructions of a task, `TASK.granularity.txt` those of a variant that needs other words
(e.g. `AR.number.txt`), and `ASR.align.txt` the eighteen of LLaSO-Align, which have no styles. In tasks with a closed
set, `{choices}` stands where the labels go.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

STYLES = ("standardised", "contextualised", "stylistic", "fine_grained")
FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Template:
    """One instruction: its id (e.g. "SGC/07"), its style ("" for those of ASR.align) and its text."""

    id: str
    style: str
    text: str


@functools.cache
def templates(task: str, granularity: str = "") -> tuple[Template, ...]:
    """Return the instructions of a task, in the order of their file.

    Args:
        task: code of a task.
        granularity: variant; its own file is used if there is one, else the task's.

    Raises:
        ValueError: there is no file for the task, or it has a heading that is no style.
    """
    name = f"{task}.{granularity}"
    if not granularity or not (FOLDER / f"{name}.txt").exists():
        name = task
    file = FOLDER / f"{name}.txt"
    if not file.exists():
        raise ValueError(f"no instructions for task {task!r}: {file} is missing")
    found: list[Template] = []
    style = ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("["):
            style = line.strip("[]")
            if style not in STYLES:
                raise ValueError(f"{file}:{number}: no style {style!r}; there are {', '.join(STYLES)}")
        elif line.strip():
            found.append(Template(f"{name}/{len(found) + 1:02d}", style, line))
    return tuple(found)
