"""Compares systems on the rows both answered: a paired bootstrap, clustered by source recording.

Every draw takes the same recordings for both systems, so that what is hard for both cancels out. Holm's correction
keeps the chance of any false verdict over all tasks of a pair at 5 %.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .intervals import Array, Estimate
from .normalized_scores import clipped, overall, panel_scores, skill_scores
from .panel import Panel, load_panel
from .readers import Answers, Row, read
from .score import PROTOCOLS, Group, Measured, estimate, group_tasks, measure_rows
from .task_metrics import TASKS, direction, primary_metrics

SIGNIFICANCE = 0.05

METRIC_NAMES = {
    "wer": "WER",
    "per": "PER",
    "mae": "mean absolute error",
    "accuracy": "accuracy",
    "slot_f1": "slot F1",
    "exact_match": "exact match",
    "judge_score": "judge score",
}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def two_sided_p(differences: Array) -> float:
    """The bootstrap p-value of "no difference": twice the smaller share of draws on either side of 0.

    The observed data count as one draw, so it is never 0 (Davison & Hinkley 1997, 4.2.4).
    """
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1))


def _shared_rows(a: Answers, b: Answers) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """The rows that both systems have, in one order.

    Raises:
        ValueError: a row asks for different references in the two, or nothing is shared.
    """
    rows_a: dict[str, list[Row]] = {}
    rows_b: dict[str, list[Row]] = {}
    for file in sorted(a.files.keys() & b.files.keys()):
        others = {row.id: row for row in b.files[file]}
        for row in a.files[file]:
            other = others.get(row.id)
            if other is None:
                continue
            if (row.task, row.reference, row.choices) != (other.task, other.reference, other.choices):
                raise ValueError(f"{row.where} and {other.where}: the same id, but another task, reference or choices")
            if (row.judge_score is None) != (other.judge_score is None):
                # A judgement that only one of them has cannot be paired.
                row = dataclasses.replace(row, judge_score=None)
                other = dataclasses.replace(other, judge_score=None)
            rows_a.setdefault(file, []).append(row)
            rows_b.setdefault(file, []).append(other)
    if not rows_a:
        raise ValueError(f"{a.system} and {b.system} share no rows: compare answers to the same data")
    return rows_a, rows_b


def _groups(
    rows_a: dict[str, list[Row]],
    rows_b: dict[str, list[Row]],
    protocol: str,
    normalization: str,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Group], dict[str, Group]]:
    """Both systems' tasks, estimated on the same draws."""
    sides = {"a": rows_a, "b": rows_b}
    tables, clusters = {}, {}
    for side, files in sides.items():
        for file, rows in files.items():
            tables[f"{side}\n{file}"] = measure_rows(rows, protocol, normalization)
            clusters[f"{side}\n{file}"] = [row.cluster for row in rows_a[file]]
    estimates = estimate(tables, clusters, resamples, seed)
    groups = [
        group_tasks(
            {
                file: Measured(rows, tables[f"{side}\n{file}"], estimates[f"{side}\n{file}"])
                for file, rows in files.items()
            }
        )
        for side, files in sides.items()
    ]
    return groups[0], groups[1]


def _decimals(value: float) -> str:
    """A number as papers write it: three decimals, no zero before the point."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def verdict(a: str, b: str, what: str, difference: float, low: float, high: float, p: float, better: str) -> str:
    """The comparison in words.

    Args:
        a: the first system.
        b: the second.
        what: the metric's name.
        difference: of the first minus the second.
        low: of its interval.
        high: of its interval.
        p: corrected.
        better: which direction of the metric is better, "higher" or "lower".
    """
    if p >= SIGNIFICANCE:
        return (
            f"no difference shown between {a} and {b} in {what}: "
            f"{_decimals(difference)} [{_decimals(low)}, {_decimals(high)}]"
        )
    ends = sorted((abs(low), abs(high)))
    side = "below" if difference < 0 else "above"
    good = (difference < 0) == (better == "lower")
    return (
        f"{a} {side} {b} in {what} by {_decimals(abs(difference))} [{_decimals(ends[0])}, {_decimals(ends[1])}]: "
        f"{a if good else b} is better"
    )


def _compare_estimates(a: Estimate, b: Estimate) -> dict[str, Any] | None:
    """The difference of two estimates on the same draws; None where it is undefined."""
    difference = Estimate(a.value - b.value, min(a.n, b.n), a.replicates - b.replicates)
    interval = difference.interval()
    if interval is None:
        return None
    return {
        "a": a.value,
        "b": b.value,
        "n": difference.n,
        "difference": difference.value,
        "low": interval[0],
        "high": interval[1],
        "p": two_sided_p(difference.replicates),
    }


def _common_metric(task: str, a: Group, b: Group, protocol: str) -> str | None:
    """The first ranking metric of `task` that both systems have a value in."""
    for name in primary_metrics(TASKS[task], protocol):
        if all(name in group.estimates and math.isfinite(group.estimates[name].value) for group in (a, b)):
            return name
    return None


def _overall(a: Mapping[str, Group], b: Mapping[str, Group], protocol: str, panel: Panel) -> dict[str, Any] | None:
    """Both systems' mean over the tasks that both have: of skill under strict, of the panel score under paper."""

    def scores(groups: Mapping[str, Group]) -> dict[str, Estimate]:
        estimates = {task: group.estimates for task, group in groups.items()}
        return skill_scores(estimates) if protocol == "strict" else panel_scores(estimates, panel)

    scores_a, scores_b = scores(a), scores(b)
    tasks = [task for task in scores_a if task in scores_b]
    if not tasks:
        return None
    found = _compare_estimates(
        overall({task: clipped(scores_a[task]) for task in tasks}),
        overall({task: clipped(scores_b[task]) for task in tasks}),
    )
    return found and {"score": "skill" if protocol == "strict" else "panel", "tasks": tasks} | found


def compare_pair(
    a: Answers,
    b: Answers,
    *,
    protocol: str,
    normalization: str,
    resamples: int,
    seed: int,
    panel: Panel,
) -> dict[str, Any]:
    """Compare two systems on the rows they share."""
    rows_a, rows_b = _shared_rows(a, b)
    groups_a, groups_b = _groups(rows_a, rows_b, protocol, normalization, resamples, seed)
    tasks: dict[str, dict[str, Any]] = {}
    for task, group in groups_a.items():
        metric = _common_metric(task, group, groups_b[task], protocol)
        if metric is None:
            continue
        found = _compare_estimates(group.estimates[metric], groups_b[task].estimates[metric])
        if found is not None:
            tasks[task] = {"metric": metric, "direction": direction(metric)} | found
    for found, adjusted in zip(tasks.values(), holm([found["p"] for found in tasks.values()]), strict=True):
        found["p_holm"] = adjusted
        found["verdict"] = verdict(
            a.system,
            b.system,
            METRIC_NAMES[found["metric"]],
            found["difference"],
            found["low"],
            found["high"],
            adjusted,
            found["direction"],
        )
    together = _overall(groups_a, groups_b, protocol, panel)
    if together is not None:
        together["verdict"] = verdict(
            a.system,
            b.system,
            f"{together['score']} over {len(together['tasks'])} tasks",
            together["difference"],
            together["low"],
            together["high"],
            together["p"],
            "higher",
        )
    return {
        "a": a.system,
        "b": b.system,
        "rows": sum(len(rows) for rows in rows_a.values()),
        "only_a": sum(len(rows) for rows in a.files.values()) - sum(len(rows) for rows in rows_a.values()),
        "only_b": sum(len(rows) for rows in b.files.values()) - sum(len(rows) for rows in rows_b.values()),
        "tasks": tasks,
        "overall": together,
    }


def compare(
    paths: Sequence[Path | str],
    *,
    protocol: str = "strict",
    normalization: str = "whisper_english",
    resamples: int = 10_000,
    seed: int = 0,
    panel: Path | str | None = None,
) -> dict[str, Any]:
    """Compare every pair of systems.

    Args:
        paths: folders of answers, at least two.
        protocol: to measure under.
        normalization: of transcripts under strict.
        resamples: of the paired bootstrap.
        seed: of the bootstrap.
        panel: panel file for the overall score under `paper`; the shipped one by default.

    Returns:
        `pairs`, each with the tasks both have (values, difference, 95 % interval, p, Holm's p, verdict) and overall.

    Raises:
        ValueError: bad input, fewer than two systems, systems of one name, or systems that share no rows.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    if len(paths) < 2:
        raise ValueError("a comparison needs at least two folders of answers")
    if resamples < 1:
        raise ValueError(f"a comparison needs at least one resample, found {resamples}")
    systems = [read(path) for path in paths]
    names = [system.system for system in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"folders of one name: {', '.join(names)}; rename one, the verdicts name the folders")
    frozen = load_panel(protocol, panel)
    return {
        "schema": 1,
        "protocol": protocol,
        "settings": {"resamples": resamples, "seed": seed, "level": 0.95, "normalization": normalization},
        "pairs": [
            compare_pair(
                a, b, protocol=protocol, normalization=normalization, resamples=resamples, seed=seed, panel=frozen
            )
            for a, b in itertools.combinations(systems, 2)
        ],
    }
