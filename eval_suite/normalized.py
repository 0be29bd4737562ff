"""Scores on one scale: between the worst and best of a frozen panel, or between a trivial answer and perfection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import Estimate, mean
from .tasks import PANEL_TASKS, TASKS, primary_metrics

if TYPE_CHECKING:
    from .panel import Panel

PERFECT = {
    "wer": 0.0,
    "per": 0.0,
    "mae": 0.0,
    "accuracy": 1.0,
    "slot_f1": 1.0,
    "exact_match": 1.0,
    "judge_score": 5.0,
}
"""The best value of each ranking metric."""

LOWEST_JUDGE_SCORE = 1.0


def baseline_metric(task: str, metric: str) -> str | float:
    """What a trivial system gets: the name of the metric that says so, or the value where it is fixed.

    The majority label for accuracy, a constant median for errors of numbers, an empty answer for transcripts,
    phonemes and slots, the lowest score for a judge.
    """
    if metric == "judge_score":
        return LOWEST_JUDGE_SCORE
    return {
        "accuracy": "majority_baseline",
        "exact_match": "majority_baseline",
        "mae": "constant_baseline",
        "wer": "empty_baseline",
        "per": "empty_baseline",
        "slot_f1": "empty_baseline",
    }[metric]


def clipped(estimate: Estimate) -> Estimate:
    """The estimate held to [0, 1]."""
    return Estimate(float(np.clip(estimate.value, 0, 1)), estimate.n, np.clip(estimate.replicates, 0, 1))


def _ranking_metric(task: str, estimates: Mapping[str, Estimate], protocol: str) -> str | None:
    for name in primary_metrics(TASKS[task], protocol):
        if name in estimates and math.isfinite(estimates[name].value):
            return name
    return None


def _content(scaled: Mapping[str, Estimate], possible: int) -> dict[str, Any]:
    """Scores by task, clipped with the unclipped value kept, and their mean."""
    tasks = {}
    for task, estimate in scaled.items():
        interval = clipped(estimate).interval()
        tasks[task] = {
            "value": clipped(estimate).value,
            "unclipped": estimate.value,
            "low": interval[0] if interval else None,
            "high": interval[1] if interval else None,
        }
    overall = mean(clipped(estimate) for estimate in scaled.values())
    interval = overall.interval()
    return {
        "value": overall.value if scaled else None,
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        "n_tasks": len(scaled),
        "of_tasks": possible,
        "tasks": tasks,
    }


def scale(estimate: Estimate, worst: float, best: float) -> Estimate:
    """The estimate on the line where `worst` is 0 and `best` is 1, whichever of them is larger."""
    return Estimate(
        (estimate.value - worst) / (best - worst), estimate.n, (estimate.replicates - worst) / (best - worst)
    )


def normalize_panel(
    tasks: Mapping[str, Mapping[str, Estimate]], protocol: str, panel: Panel, modality: str | None = None
) -> dict[str, Any]:
    """Min-max between the panel's worst and best, by task and averaged.

    Args:
        tasks: task -> metric -> estimate.
        protocol: they were measured under.
        panel: of the same protocol.
        modality: compare with the panel's values in this modality format; all formats together by default.

    Returns:
        The mean over the tasks that both have, over how many, and each task's value.
    """
    bounds = panel.bounds(modality)
    scaled = {}
    for task, estimates in tasks.items():
        name = _ranking_metric(task, estimates, protocol)
        # A task ranked by another metric than the panel's is not comparable with it.
        if name is None or task not in bounds or panel.metrics[task] != name:
            continue
        scaled[task] = scale(estimates[name], *bounds[task])
    return {"name": panel.name, "version": panel.version} | _content(scaled, len(bounds))


def normalize_skill(tasks: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """0 for the trivial baseline and 1 for perfection, by task and averaged over all tasks present."""
    scaled = {}
    for task, estimates in tasks.items():
        name = _ranking_metric(task, estimates, "strict")
        if name is None:
            continue
        baseline = baseline_metric(task, name)
        trivial = (
            estimates[baseline]
            if isinstance(baseline, str)
            else Estimate(baseline, 0, np.full_like(estimates[name].replicates, baseline))
        )
        room = PERFECT[name] - trivial.value
        if not math.isfinite(room) or abs(room) < 1e-12:
            continue  # the trivial answer is already perfect: there is no skill to show
        rooms = PERFECT[name] - trivial.replicates
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = (estimates[name].replicates - trivial.replicates) / rooms
        scaled[task] = Estimate(
            (estimates[name].value - trivial.value) / room,
            estimates[name].n,
            np.where(np.isfinite(replicates), replicates, np.nan),
        )
    return _content(scaled, len([task for task in tasks if task in TASKS]))


def common_tasks(systems: Iterable[Mapping[str, Any]]) -> list[str]:
    """The tasks on which all of several `normalized` contents may be ranked against each other."""
    contents = list(systems)
    return [task for task in (*PANEL_TASKS, "AR_years") if all(task in content["tasks"] for content in contents)]
