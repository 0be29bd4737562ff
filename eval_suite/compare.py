"""Compares systems on the rows both answered: a paired bootstrap, clustered by source recording.

Every draw takes the same recordings for both systems, so that what is hard for both cancels out. Holm's correction
keeps the chance of any false verdict over all tasks of a pair at 5 %. Nothing is measured here: the rows of two
scores.json are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .intervals import LEVEL, Array, BootstrapEstimate
from .metrics import METRICS, PROTOCOLS, FileMetrics, ranking_metrics
from .panel import Panel, load_panel
from .power import detectable
from .score import ScoredFile, ScoredTask, estimate, group_tasks, score_rows
from .scored_rows import AGAIN, Scored, ScoredRow
from .skill_and_panel import clipped, overall, panel_scores, skill_scores
from .speed import compare_speed
from .task_metrics import TASKS

SIGNIFICANCE = 0.05


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values.

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
    """Return the bootstrap p-value of "no difference": twice the smaller share of draws on either side of 0.

    The observed data count as one draw, so it is never 0 (Davison & Hinkley 1997, 4.2.4).
    """
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1))


def _shared_rows(a: Scored, b: Scored) -> tuple[dict[str, list[ScoredRow]], dict[str, list[ScoredRow]]]:
    """Return the rows that both systems have, in one order.

    Raises:
        ValueError: a row asks for different references in the two, or nothing is shared.
    """
    rows_a: dict[str, list[ScoredRow]] = {}
    rows_b: dict[str, list[ScoredRow]] = {}
    for file in sorted(a.rows.keys() & b.rows.keys()):
        others = {other.row.id: other for other in b.rows[file]}
        for one in a.rows[file]:
            other = others.get(one.row.id)
            if other is None:
                continue
            row, rival = one.row, other.row
            if (row.task, row.reference, row.choices) != (rival.task, rival.reference, rival.choices):
                raise ValueError(f"{row.where} and {rival.where}: the same id, but another task, reference or choices")
            rows_a.setdefault(file, []).append(one)
            rows_b.setdefault(file, []).append(other)
    if not rows_a:
        raise ValueError(f"{a.system} and {b.system} share no rows: compare answers to the same data")
    return rows_a, rows_b


def paired_quantities(rows: Sequence[ScoredRow], rivals: Sequence[ScoredRow]) -> list[dict[str, Any]]:
    """Return the quantities of `rows`, without judgements that only one of the two systems has."""
    return [
        one.quantities
        if ("judge_score" not in one.quantities)
        or (one.quantities["judge_score"] is None) == (other.quantities.get("judge_score") is None)
        else one.quantities | {"judge_score": None}
        for one, other in zip(rows, rivals, strict=True)
    ]


def _groups(
    rows_a: dict[str, list[ScoredRow]], rows_b: dict[str, list[ScoredRow]], protocol: str, resamples: int, seed: int
) -> tuple[dict[str, ScoredTask], dict[str, ScoredTask]]:
    """Return both systems' tasks, estimated on the same draws."""
    sides = {"a": (rows_a, rows_b), "b": (rows_b, rows_a)}
    tables, clusters = {}, {}
    for side, (files, rivals) in sides.items():
        for file, rows in files.items():
            tables[f"{side}\n{file}"] = FileMetrics(paired_quantities(rows, rivals[file]), protocol)
            clusters[f"{side}\n{file}"] = [one.row.cluster for one in rows_a[file]]
    estimates = estimate(tables, clusters, resamples, seed)
    groups = [
        group_tasks(
            {
                file: ScoredFile(rows, tables[f"{side}\n{file}"], estimates[f"{side}\n{file}"])
                for file, rows in files.items()
            }
        )
        for side, (files, _) in sides.items()
    ]
    return groups[0], groups[1]


def _decimals(value: float) -> str:
    """Return a number as papers write it: three decimals, no zero before the point."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def verdict(a: str, b: str, what: str, difference: float, low: float, high: float, p: float, better: str) -> str:
    """Return the comparison in words.

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


def _compare_estimates(a: BootstrapEstimate, b: BootstrapEstimate) -> dict[str, Any] | None:
    """Return the difference of two estimates on the same draws; None if it is undefined."""
    difference = BootstrapEstimate(a.value - b.value, min(a.n, b.n), a.replicates - b.replicates)
    interval = difference.interval()
    if interval is None:
        return None
    spread = float(np.nanstd(difference.replicates))
    return {
        "a": a.value,
        "b": b.value,
        "n": difference.n,
        "difference": difference.value,
        "low": interval[0],
        "high": interval[1],
        "p": two_sided_p(difference.replicates),
        # Systems that never differ say nothing of what could be told apart.
        "detectable": detectable(spread) if spread > 0 else None,
    }


def _common_metric(task: str, a: ScoredTask, b: ScoredTask, protocol: str) -> str | None:
    """Return the first ranking metric of `task` that both systems have a value in."""
    for metric in ranking_metrics(TASKS[task].kind, protocol):
        if all(
            metric.name in group.estimates and math.isfinite(group.estimates[metric.name].value) for group in (a, b)
        ):
            return metric.name
    return None


def _overall(
    a: Mapping[str, ScoredTask], b: Mapping[str, ScoredTask], protocol: str, panel: Panel
) -> dict[str, Any] | None:
    """Return both systems' mean over the tasks that both have: of skill under strict, of panel under paper."""

    def scores(groups: Mapping[str, ScoredTask]) -> dict[str, BootstrapEstimate]:
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


def compare_pair(a: Scored, b: Scored, *, resamples: int, seed: int, panel: Panel) -> dict[str, Any]:
    """Compare two systems, scored under one protocol, on the rows they share."""
    rows_a, rows_b = _shared_rows(a, b)
    groups_a, groups_b = _groups(rows_a, rows_b, a.protocol, resamples, seed)
    tasks: dict[str, dict[str, Any]] = {}
    for task, group in groups_a.items():
        metric = _common_metric(task, group, groups_b[task], a.protocol)
        if metric is None:
            continue
        found = _compare_estimates(group.estimates[metric], groups_b[task].estimates[metric])
        if found is not None:
            tasks[task] = {"metric": metric, "direction": METRICS[metric].better} | found
    for found, adjusted in zip(tasks.values(), holm([found["p"] for found in tasks.values()]), strict=True):
        found["p_holm"] = adjusted
        found["verdict"] = verdict(
            a.system,
            b.system,
            METRICS[found["metric"]].title or found["metric"],
            found["difference"],
            found["low"],
            found["high"],
            adjusted,
            found["direction"],
        )
    together = _overall(groups_a, groups_b, a.protocol, panel)
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
    shared = sum(len(rows) for rows in rows_a.values())
    return {
        "a": a.system,
        "b": b.system,
        "rows": shared,
        "only_a": sum(len(rows) for rows in a.rows.values()) - shared,
        "only_b": sum(len(rows) for rows in b.rows.values()) - shared,
        "tasks": tasks,
        "overall": together,
        "speed": compare_speed(a.content["speed"], b.content["speed"], (a.system, b.system)),
    }


def scored_systems(
    paths: Sequence[Path | str | Scored], *, protocol: str | None = None, normalization: str = "whisper_english"
) -> list[Scored]:
    """Return systems with their rows: scores.json are read, folders of answers are scored without intervals.

    Args:
        paths: scores.json files, folders of answers, or scores with their rows.
        protocol: to score folders under, and that scores.json must be of; by default that of the first scores.json,
            else strict.
        normalization: of transcripts, for folders.

    Raises:
        ValueError: bad input, systems of one name, or scores of several protocols or normalizations.
    """
    given = [path if isinstance(path, Scored) else Path(path) for path in paths]
    read = {
        number: one if isinstance(one, Scored) else Scored.read(one)
        for number, one in enumerate(given)
        if isinstance(one, Scored) or not one.is_dir()
    }
    for one in read.values():
        if not one.rows:
            raise ValueError(f"{one.path or one.system}: the scores have no rows with them; {AGAIN}")
        if protocol not in (None, one.protocol):
            raise ValueError(f"{one.path or one.system}: scored under {one.protocol}, but {protocol} is compared")
        protocol = one.protocol
    protocol = protocol or "strict"
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    systems = [
        read[number]
        if number in read
        else score_rows(one, protocol=protocol, normalization=normalization, intervals=False)  # type: ignore[arg-type]
        for number, one in enumerate(given)
    ]
    names = [system.system for system in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"systems of one name: {', '.join(names)}; rename a folder, or score it with `--system NAME`")
    used = {one.content["settings"].get("normalization") for one in systems}
    if len(used) > 1:
        raise ValueError(f"scores under several normalizations ({', '.join(sorted(map(str, used)))}); {AGAIN}")
    return systems


def compare(
    paths: Sequence[Path | str | Scored],
    *,
    protocol: str | None = None,
    normalization: str = "whisper_english",
    resamples: int = 10_000,
    seed: int = 0,
    panel: Path | str | None = None,
) -> dict[str, Any]:
    """Compare every pair of systems.

    Args:
        paths: scores.json files or folders of answers, at least two.
        protocol: to score folders under; see `scored_systems`.
        normalization: of transcripts under strict, for folders.
        resamples: of the paired bootstrap.
        seed: of the bootstrap.
        panel: panel file for the overall score under `paper`; the shipped one by default.

    Returns:
        `pairs`, each with the tasks both have (values, difference, 95 % interval, p, Holm's p, verdict) and overall.

    Raises:
        ValueError: bad input, fewer than two systems, systems of one name, or systems that share no rows.
    """
    if len(paths) < 2:
        raise ValueError("a comparison needs at least two folders of answers or scores.json")
    if resamples < 1:
        raise ValueError(f"a comparison needs at least one resample, found {resamples}")
    systems = scored_systems(paths, protocol=protocol, normalization=normalization)
    protocol = systems[0].protocol
    frozen = load_panel(protocol, panel)
    used = systems[0].content["settings"].get("normalization", normalization)
    return {
        "schema": 1,
        "protocol": protocol,
        "settings": {"resamples": resamples, "seed": seed, "level": LEVEL, "normalization": used},
        "pairs": [
            compare_pair(a, b, resamples=resamples, seed=seed, panel=frozen)
            for a, b in itertools.combinations(systems, 2)
        ],
    }
