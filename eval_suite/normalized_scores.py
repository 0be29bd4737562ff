"""Scores on one scale: between the worst and best of a frozen panel, or between a trivial answer and perfection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import Estimate, mean
from .task_metrics import TASKS, primary_metrics

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


def baseline_metric(metric: str) -> str | float:
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


def ranking_metric(task: str, estimates: Mapping[str, Estimate], protocol: str) -> str | None:
    """The metric that ranks `task`: the first of its candidates that has a value; None where none has."""
    for name in primary_metrics(TASKS[task], protocol):
        if name in estimates and math.isfinite(estimates[name].value):
            return name
    return None


def overall(scaled: Mapping[str, Estimate]) -> Estimate:
    """The unweighted mean over tasks of the clipped scores."""
    return mean(clipped(estimate) for estimate in scaled.values())


def content(scaled: Mapping[str, Estimate], possible: int) -> dict[str, Any]:
    """Scores by task, clipped with the unclipped value kept, and their mean, as they stand in scores.json."""
    tasks = {}
    for task, estimate in scaled.items():
        low, high = clipped(estimate).interval() or (None, None)
        tasks[task] = {"value": clipped(estimate).value, "unclipped": estimate.value, "low": low, "high": high}
    average = overall(scaled)
    low, high = average.interval() or (None, None)
    return {
        "value": average.value if scaled else None,
        "low": low,
        "high": high,
        "n_tasks": len(scaled),
        "of_tasks": possible,
        "tasks": tasks,
    }


def scale(estimate: Estimate, worst: float, best: float) -> Estimate:
    """The estimate on the line where `worst` is 0 and `best` is 1, whichever of them is larger."""
    return Estimate(
        (estimate.value - worst) / (best - worst), estimate.n, (estimate.replicates - worst) / (best - worst)
    )


def panel_scores(
    tasks: Mapping[str, Mapping[str, Estimate]], panel: Panel, modality: str | None = None
) -> dict[str, Estimate]:
    """Min-max between the panel's worst and best, by task.

    Args:
        tasks: task -> metric -> estimate, measured under the panel's protocol.
        panel: to measure against.
        modality: take the panel's values in this modality format; of all formats together by default.

    Returns:
        Unclipped scores of the tasks that both have, ranked by the same metric.
    """
    scaled = {}
    for task, bounds in panel.bounds(modality).items():
        name = ranking_metric(task, tasks.get(task, {}), panel.protocol)
        if name == panel.metrics[task]:
            scaled[task] = scale(tasks[task][name], *bounds)
    return scaled


def skill_scores(tasks: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """0 for the trivial baseline and 1 for perfection, by task, unclipped; measured under strict.

    Tasks on which the trivial answer is already perfect have no skill to show and are left out.
    """
    scaled = {}
    for task, estimates in tasks.items():
        name = ranking_metric(task, estimates, "strict")
        if name is None:
            continue
        baseline = baseline_metric(name)
        trivial = (
            estimates[baseline]
            if isinstance(baseline, str)
            else Estimate(baseline, 0, np.full_like(estimates[name].replicates, baseline))
        )
        if not math.isfinite(trivial.value) or math.isclose(trivial.value, PERFECT[name], abs_tol=1e-12):
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = (estimates[name].replicates - trivial.replicates) / (PERFECT[name] - trivial.replicates)
        scaled[task] = Estimate(
            (estimates[name].value - trivial.value) / (PERFECT[name] - trivial.value),
            estimates[name].n,
            np.where(np.isfinite(replicates), replicates, np.nan),
        )
    return scaled
