"""The two scores on one scale: `panel`, between the worst and best of a frozen panel, and `skill`, between a trivial
answer and perfection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import BootstrapEstimate, mean
from .metrics import METRICS, ranking_metrics
from .task_metrics import TASKS

if TYPE_CHECKING:
    from .panel import Panel


def clipped(estimate: BootstrapEstimate) -> BootstrapEstimate:
    """Return the estimate held to [0, 1]."""
    return BootstrapEstimate(float(np.clip(estimate.value, 0, 1)), estimate.n, np.clip(estimate.replicates, 0, 1))


def ranking_metric(task: str, estimates: Mapping[str, BootstrapEstimate], protocol: str) -> str | None:
    """Return the metric that ranks `task`: the first of its candidates that has a value; None if none has."""
    for metric in ranking_metrics(TASKS[task].kind, protocol):
        if metric.name in estimates and math.isfinite(estimates[metric.name].value):
            return metric.name
    return None


def baseline_estimate(name: str, estimates: Mapping[str, BootstrapEstimate]) -> BootstrapEstimate | None:
    """Return what a trivial system gets in the metric `name`; None if the metric has no baseline."""
    baseline = METRICS[name].baseline
    if isinstance(baseline, float):
        return BootstrapEstimate(baseline, 0, np.full_like(estimates[name].replicates, baseline))
    return estimates.get(baseline) if baseline is not None else None


def overall(scaled: Mapping[str, BootstrapEstimate]) -> BootstrapEstimate:
    """Return the unweighted mean over tasks of the clipped scores."""
    return mean(clipped(estimate) for estimate in scaled.values())


def content(scaled: Mapping[str, BootstrapEstimate], possible: int) -> dict[str, Any]:
    """Return scores by task, clipped, with the unclipped value kept, and their mean, as they stand in scores.json."""
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


def scale(estimate: BootstrapEstimate, worst: float, best: float) -> BootstrapEstimate:
    """Return the estimate on the scale on which `worst` is 0 and `best` is 1, whichever of them is larger."""
    return BootstrapEstimate(
        (estimate.value - worst) / (best - worst), estimate.n, (estimate.replicates - worst) / (best - worst)
    )


def panel_scores(
    tasks: Mapping[str, Mapping[str, BootstrapEstimate]], panel: Panel, modality: str | None = None
) -> dict[str, BootstrapEstimate]:
    """Return min-max scores between the panel's worst and best, by task.

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


def skill_scores(tasks: Mapping[str, Mapping[str, BootstrapEstimate]]) -> dict[str, BootstrapEstimate]:
    """Return by task 0 for the trivial baseline and 1 for perfection, unclipped; measured under strict.

    Tasks on which the trivial answer is already perfect have no skill to show and are left out.
    """
    scaled = {}
    for task, estimates in tasks.items():
        name = ranking_metric(task, estimates, "strict")
        if name is None:
            continue
        perfect = METRICS[name].perfect
        trivial = baseline_estimate(name, estimates)
        if trivial is None or perfect is None or not math.isfinite(trivial.value):
            continue
        if math.isclose(trivial.value, perfect, abs_tol=1e-12):
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = (estimates[name].replicates - trivial.replicates) / (perfect - trivial.replicates)
        scaled[task] = BootstrapEstimate(
            (estimates[name].value - trivial.value) / (perfect - trivial.value),
            estimates[name].n,
            np.where(np.isfinite(replicates), replicates, np.nan),
        )
    return scaled
