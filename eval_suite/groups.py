"""Scores groups of speakers or recordings, and wordings of the instruction: the gaps and their intervals.

A group is a value of an attribute: those that the data records (style and wording of the instruction, voice, and
gender, age, accent, language or noise if the corpus has such columns), and those that the reference labels of the same
recording say (gender from SGC, accent from AC, age group from AR). Gaps carry a bootstrap interval over recordings and
a p-value corrected over all pairs of groups and tasks of the attribute.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from .compare import SIGNIFICANCE, holm, two_sided_p
from .intervals import BootstrapEstimate
from .metrics import METRICS, ranking_metrics
from .score import entry, estimate, file_metrics
from .scored_rows import Scored, ScoredRow
from .task_metrics import TASKS

LABELLED = {"SGC": "gender", "AC": "accent", "AR": "age"}
"""Tasks whose reference label is an attribute of the recording."""
SMALLEST = 10
"""Groups of fewer rows are counted, not compared."""


def attributes(scored: Scored) -> dict[tuple[str, str], dict[str, str]]:
    """Return the attributes of every row, by (file, id): the row's own, and those its recording's labels tell.

    A recording that carries two different labels of one task has none of them.
    """
    told: dict[str, dict[str, set[str]]] = {}
    rows = [one for file in scored.rows.values() for one in file]
    for one in rows:
        if one.row.task in LABELLED and "label" in one.quantities:
            labels = told.setdefault(one.row.cluster, {}).setdefault(LABELLED[one.row.task], set())
            labels.add(one.quantities["label"])
    found = {}
    for one in rows:
        labelled = {
            name: next(iter(values)) for name, values in told.get(one.row.cluster, {}).items() if len(values) == 1
        }
        found[one.row.file, one.row.id] = labelled | one.row.attributes
    return found


def group_scores(
    scored: Scored, by: Sequence[str] | None = None, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Return the ranking metric of every task by group, for each attribute.

    Args:
        scored: a system's scores with their rows.
        by: attributes; all that separate at least two groups of `SMALLEST` rows in some task by default.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        attribute -> `unknown` (rows without it) and `tasks`: task -> `metric`, `direction`, `groups` (value, n and
        interval by group; None for groups too small), and `gap` between the best group and the worst: which they are,
        the difference with its interval, and p corrected over all pairs of groups and tasks of the attribute.

    Raises:
        ValueError: no row has a named attribute.
    """
    known = attributes(scored)
    names = sorted({name for one in known.values() for name in one})
    if missing := [name for name in by or () if name not in names]:
        raise ValueError(
            f"{scored.system}: no row has the attribute {', '.join(missing)}; there are {', '.join(names) or 'none'}"
        )
    content = {}
    for name in by if by is not None else names:
        tasks = _by_attribute(scored, name, known, resamples, seed)
        if tasks or by is not None:
            content[name] = {"unknown": sum(name not in one for one in known.values()), "tasks": tasks}
    return content


def _by_attribute(
    scored: Scored, name: str, known: dict[tuple[str, str], dict[str, str]], resamples: int, seed: int
) -> dict[str, Any]:
    groups: dict[str, dict[str, list[ScoredRow]]] = {}
    for rows in scored.rows.values():
        for one in rows:
            if value := known[one.row.file, one.row.id].get(name):
                groups.setdefault(one.row.task, {}).setdefault(value, []).append(one)
    tables, clusters = {}, {}
    for task, parts in groups.items():
        large = {value: rows for value, rows in parts.items() if len(rows) >= SMALLEST}
        metric = _metric(scored, task)
        for value, rows in large.items() if len(large) > 1 and metric else ():
            table = file_metrics(rows, scored.protocol, [str(metric)])
            if table.statistics:
                tables[f"{task}\n{value}"] = table
                clusters[f"{task}\n{value}"] = [one.row.cluster for one in rows]
    estimates = {key: next(iter(found.values())) for key, found in estimate(tables, clusters, resamples, seed).items()}
    tasks: dict[str, Any] = {}
    pairs: list[tuple[str, float]] = []
    for task in TASKS:
        found = {
            value: estimates[f"{task}\n{value}"]
            for value in sorted(groups.get(task, ()))
            if f"{task}\n{value}" in estimates and math.isfinite(estimates[f"{task}\n{value}"].value)
        }
        if len(found) < 2:
            continue
        metric = str(_metric(scored, task))
        ordered = sorted(found, key=lambda value: found[value].value, reverse=METRICS[metric].better == "higher")
        best, worst = ordered[0], ordered[-1]
        difference = BootstrapEstimate(
            found[best].value - found[worst].value,
            found[best].n + found[worst].n,
            found[best].replicates - found[worst].replicates,
        )
        for a, b in itertools.combinations(ordered, 2):
            p = two_sided_p(found[a].replicates - found[b].replicates) if resamples else math.nan
            pairs.append((task if (a, b) == (best, worst) else "", p))
        tasks[task] = {
            "metric": metric,
            "direction": METRICS[metric].better,
            "groups": {value: entry(found[value]) if value in found else None for value in sorted(groups[task])},
            "sizes": {value: len(rows) for value, rows in sorted(groups[task].items())},
            "gap": {"best": best, "worst": worst, **entry(difference)},
        }
    for (task, _), adjusted in zip(pairs, holm([p for _, p in pairs]), strict=True):
        if task:
            tasks[task]["gap"]["p_holm"] = adjusted if math.isfinite(adjusted) else None
    return tasks


def _metric(scored: Scored, task: str) -> str | None:
    """Return the metric that ranks a task of a system."""
    primary = scored.content["tasks"].get(task, {}).get("primary")
    if primary is not None:
        return primary["metric"]
    return next((metric.name for metric in ranking_metrics(TASKS[task].kind, scored.protocol)), None)


def worst_groups(content: dict[str, Any]) -> list[str]:
    """Return the sure gaps in words, largest share of the better value first."""
    said = []
    for attribute, one in content.items():
        for task, found in one["tasks"].items():
            gap = found["gap"]
            if gap.get("p_holm") is not None and gap["p_holm"] < SIGNIFICANCE:
                name = METRICS[found["metric"]].title or found["metric"]
                best, worst = found["groups"][gap["best"]]["value"], found["groups"][gap["worst"]]["value"]
                said.append(
                    f"{task} by {attribute}: {gap['worst']} is worst, {name} {worst:.3f} against {best:.3f} of "
                    f"{gap['best']} (p {gap['p_holm']:.4f})"
                )
    return said
