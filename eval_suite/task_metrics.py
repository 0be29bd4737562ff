"""The tasks as they are scored: those of `llaso_common.tasks`, ages in years apart, and the scales of numbers.

Which metric ranks a kind of answer stands in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


_SCALES = {
    "AR_years": Scale(18, 80, (0, 120)),
    "PSWL": Scale(0, 10, (0, 10)),
    "PSSL": Scale(0, 10, (0, 10)),
    "PP": Scale(0, 127, (0, 127)),
}


def _scored_tasks() -> Iterator[AnswerTask]:
    for code, task in tasks.TASKS.items():
        yield AnswerTask(code, task.short_name, task.category, task.answer, _SCALES.get(code))
        if code == "AR":
            # VocalSound's exact ages: rows of AR without choices. The paper keeps them apart from the age groups.
            yield AnswerTask("AR_years", "age in years", task.category, "number", _SCALES["AR_years"])


TASKS: dict[str, AnswerTask] = {task.code: task for task in _scored_tasks()}

PANEL_TASKS = tuple(code for code in TASKS if code != "AR_years")
"""The 20 tasks the paper averages; ages in years are reported apart."""
