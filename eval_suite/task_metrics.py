"""The tasks as they are scored: those of `llaso_common.tasks`, ages in years apart, and the scales of numbers.

Tasks that a corpus defines are declared when its rows, the answers to them or their scores are read.

Which metric ranks a kind of answer stands in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llaso_common import tasks
from llaso_common.tasks import CATEGORIES as CATEGORIES
from llaso_common.tasks import MODALITIES as MODALITIES
from llaso_common.tasks import AnswerKind


@dataclass(frozen=True)
class Scale:
    """Bounds of a task's numbers.

    `low`..`high` is the scale a missing number is charged on: it counts max(reference - low, high - reference).
    A number outside `usable` is not an answer at all.
    """

    low: float
    high: float
    usable: tuple[float, float]


@dataclass(frozen=True)
class AnswerTask:
    """One task as it is scored: its code, name and category, what an answer is, and the scale of its numbers."""

    code: str
    name: str
    category: str
    kind: AnswerKind
    scale: Scale | None = None


YEARS = "AR_years"
"""Exact ages: rows of AR without choices. The paper keeps them apart from the age groups."""
_SCALES = {YEARS: Scale(18, 80, (0, 120)), "PSWL": Scale(0, 10, (0, 10)), "PSSL": Scale(0, 10, (0, 10))}


@cache
def _scored(task: tasks.Task) -> AnswerTask:
    scale = _SCALES.get(task.code)
    if task.answer == "number" and task.numbers:
        scale = Scale(*task.numbers, task.numbers)
    return AnswerTask(task.code, task.short_name, task.category, task.answer, scale)


class _ScoredTasks(Mapping[str, AnswerTask]):
    """The tasks of `llaso_common.tasks` as they are scored, those that corpora declared included."""

    _years = AnswerTask(YEARS, "age in years", tasks.TASKS["AR"].category, "number", _SCALES[YEARS])

    def __getitem__(self, code: str) -> AnswerTask:
        return self._years if code == YEARS else _scored(tasks.TASKS[code])

    def __iter__(self) -> Iterator[str]:
        for code in tasks.TASKS:
            yield code
            if code == "AR":
                yield YEARS

    def __len__(self) -> int:
        return len(tasks.TASKS) + 1


TASKS = _ScoredTasks()

PANEL_TASKS = tuple(tasks.PAPER_TASKS)
"""The 20 tasks the paper averages; ages in years are reported apart."""


def declare(definitions: Mapping[str, Any], where: str) -> None:
    """Make tasks of a corpus known, as `llaso eval generate` keeps them beside its answers.

    Args:
        definitions: `tasks` of generation.json.
        where: the file, for messages.

    Raises:
        ValueError: a definition cannot be read, or the task is known with another one.
    """
    try:
        found = [tasks.Task.from_record(record) for record in definitions.values()]
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{where}: {error}; generate the answers again") from error
    tasks.TASKS.declare(found, where)
