"""Computes the smallest difference that a benchmark can show, and the number of rows that a difference needs.

The variance of a difference is a delete-one jackknife over source recordings, of both systems on the same rows: what
is hard for both cancels out, and repeats of a recording are no new evidence. Source: Efron & Stein 1981 for the
jackknife; the sample size is that of a two-sided z test.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from .intervals import Array
from .metrics import METRICS, FileMetrics, ranking_metrics
from .scored_rows import Scored, ScoredRow
from .task_metrics import TASKS

SMALLEST = 1e-6
"""The smallest difference that rows are forecast for."""
SHIPPED = "power_released.json"
"""Variances between the released systems, made by `llaso eval power FOLDER… --out`."""


@dataclass(frozen=True)
class Influence:
    """A system's value in one task, and how it changes if a source recording is left out.

    `delta` is by recording, in the order of `recordings`; `unit` is what a difference of 1 means in this metric.
    """

    metric: str
    value: float
    rows: int
    recordings: tuple[str, ...]
    delta: Array
    unit: float


def influence(files: Sequence[Sequence[ScoredRow]], protocol: str) -> Influence | None:
    """Return the influence of every source recording on a task's value, the mean of its files.

    Args:
        files: the rows of the task's files.
        protocol: that they were scored under.

    Returns:
        None if no metric that ranks the task has a value in every file.
    """
    for metric in ranking_metrics(TASKS[files[0][0].row.task].kind, protocol):
        parts = [_file_influence(rows, protocol, metric.name) for rows in files]
        if any(part is None for part in parts):
            continue
        found = [part for part in parts if part is not None]
        names = sorted({name for _, delta, _ in found for name in delta})
        delta = np.array([sum(part.get(name, 0.0) for _, part, _ in found) for name in names]) / len(found)
        value = float(np.mean([value for value, _, _ in found]))
        unit = float(np.mean([unit for _, _, unit in found]))
        return Influence(metric.name, value, sum(map(len, files)), tuple(names), delta, unit)
    return None


def _file_influence(
    rows: Sequence[ScoredRow], protocol: str, name: str
) -> tuple[float, dict[str, float], float] | None:
    """Return a file's value, the change by each recording left out, and the unit of the metric."""
    unit = METRICS[name].unit
    named = [name, unit] if isinstance(unit, str) else [name]
    table = FileMetrics([one.quantities for one in rows], protocol, named)
    values = table.values()
    if not math.isfinite(values.get(name, math.nan)):
        return None
    statistic = table.statistics[name]
    names, owner = np.unique([one.row.cluster for one in rows], return_inverse=True)
    by_recording = np.zeros((len(names), statistic.columns.shape[1]))
    np.add.at(by_recording, owner, statistic.columns)
    without = statistic.compute(statistic.columns.sum(axis=0) - by_recording)
    delta = np.nan_to_num(without - values[name], nan=0.0)
    scale = values.get(unit, 1.0) if isinstance(unit, str) else unit
    return values[name], dict(zip(names.tolist(), delta.tolist(), strict=True)), scale or 1.0


def standard_error(delta: Array) -> float:
    """Return the jackknife standard error from the changes by each recording left out."""
    count = len(delta)
    return math.sqrt((count - 1) / count * float(((delta - delta.mean()) ** 2).sum())) if count > 1 else math.nan


def detectable(error: float, power: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest difference that a two-sided test at `level` finds with probability `power`.

    Args:
        error: the standard error of the difference.
        power: wanted, a share.
        level: of the test.
    """
    return (NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)) * error


def rows_needed(rows: int, error: float, difference: float, power: float = 0.8, level: float = 0.05) -> int:
    """Return how many rows make `difference` detectable, if `rows` rows give the standard error `error`."""
    return math.ceil(rows * (detectable(error, power, level) / difference) ** 2)


def task_errors(systems: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Return by task the standard errors of the differences between every two systems, on the rows that all have.

    Args:
        systems: scored under one protocol, two or more.

    Returns:
        task -> `metric`, `rows`, `recordings`, `unit` and the sorted standard errors `errors` of its pairs. Tasks
        that fewer than two systems have in one metric, that rest on one recording, or in which no two systems differ
        on any recording are left out.
    """
    found: dict[str, list[Influence]] = {}
    for system in systems:
        for task, files in _shared_files(system, systems).items():
            one = influence(files, system.protocol)
            if one is not None:
                found.setdefault(task, []).append(one)
    errors = {}
    for task in TASKS:
        metrics = {one.metric for one in found.get(task, ())}
        if len(metrics) != 1 or len(found[task]) < 2:
            continue
        first = found[task][0]
        pairs = [
            standard_error(a.delta - b.delta)
            for a, b in itertools.combinations(found[task], 2)
            if a.recordings == b.recordings and len(a.recordings) > 1
        ]
        if any(pairs):
            errors[task] = {
                "metric": first.metric,
                "rows": first.rows,
                "recordings": len(first.recordings),
                "unit": first.unit,
                "errors": sorted(pairs),
            }
    return errors


def _shared_files(system: Scored, systems: Sequence[Scored]) -> dict[str, list[list[ScoredRow]]]:
    """Return a system's rows by task and file; only those that every system with the file has too."""
    by_task: dict[str, list[list[ScoredRow]]] = {}
    for file, rows in sorted(system.rows.items()):
        others = [{one.row.id for one in other.rows[file]} for other in systems if file in other.rows]
        common = set.intersection(*others)
        if kept := [one for one in rows if one.row.id in common]:
            by_task.setdefault(kept[0].row.task, []).append(kept)
    return by_task


def forecast(
    errors: Mapping[str, Mapping[str, Any]], difference: float, power: float = 0.8, level: float = 0.05
) -> dict[str, dict[str, Any]]:
    """Return by task what can be told apart with the rows at hand, and how many rows `difference` needs.

    Args:
        errors: of `task_errors`.
        difference: in the metric itself; in an error of numbers, as a share of the constant baseline's, and of a
            judge's score, as a share of its scale.
        power: wanted, a share.
        level: of the test.

    Returns:
        task -> `detectable` and `rows_needed` of the median pair of systems that differ at all, and of the worst.

    Raises:
        ValueError: a difference or share out of range.
    """
    if difference <= 0 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(f"difference {difference}, power {power}, level {level}: give shares above 0 and below 1")
    if power <= level:
        raise ValueError(f"power {power}: give more than the level {level}, which a test has without a difference")
    if difference < SMALLEST:
        raise ValueError(f"difference {difference}: give {SMALLEST} or more")
    content = {}
    for task, one in errors.items():
        # Two systems that both fail a task in the same way on every row say nothing of how others differ.
        typical, worst = float(np.median([error for error in one["errors"] if error > 0] or [0.0])), one["errors"][-1]
        wanted = difference * one["unit"]
        content[task] = {
            "metric": one["metric"],
            "rows": one["rows"],
            "recordings": one["recordings"],
            "difference": wanted,
            "detectable": detectable(typical, power, level),
            "detectable_worst_pair": detectable(worst, power, level),
            "rows_needed": rows_needed(one["rows"], typical, wanted, power, level),
            "rows_needed_worst_pair": rows_needed(one["rows"], worst, wanted, power, level),
        }
    return content


def shipped_errors() -> dict[str, Any]:
    """Return the errors between the released systems, with their provenance."""
    return json.loads((package_files(__package__) / "data" / SHIPPED).read_text(encoding="utf-8"))


def read_errors(path: Path | str) -> dict[str, Any]:
    """Return a file of errors that `llaso eval power --out` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        assert content["tasks"] and content["protocol"] and content["systems"]
        for one in content["tasks"].values():
            forecast({"": one}, 1e-2)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError):
        raise ValueError(f"{path}: not a file of `llaso eval power --out`") from None
    return content
