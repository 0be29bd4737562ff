"""Makes the board: many systems on one page, ranked with the uncertainty of ranks, by task and modality format.

In come scores with their rows, under strict and, beside it, under paper. Ranks are bootstrapped on common draws of
source recordings: in every draw all systems are measured on the same recordings and ranked anew. A mean over tasks
ranks systems on the tasks that all of them answered; which these are is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llaso_common.atomic_write import write_atomically

from .charts import rank_svg, scatter_svg
from .intervals import LEVEL, Array, BootstrapEstimate
from .metrics import METRICS, PROTOCOLS, FileMetrics, ranking_metrics
from .report import MODALITY_NAMES, TEMPLATES, environment
from .score import ScoredFile, ScoredTask, estimate, group_tasks
from .scored_rows import AGAIN, Scored
from .skill_and_panel import overall, ranking_metric, skill_scores
from .speed import main_run
from .task_metrics import MODALITIES, TASKS

MAIN, OTHER = PROTOCOLS


def ranks(values: Array, better: str) -> Array:
    """Return the rank of every system in every draw, 1 the best; equal values share the better rank.

    Args:
        values: (systems, draws); nan ranks last.
        better: "higher" or "lower".
    """
    keys = np.where(np.isfinite(values), -values if better == "higher" else values, np.inf)
    return 1 + (keys[None, :, :] < keys[:, None, :]).sum(axis=1)


def board(
    scored: Sequence[Scored], *, resamples: int = 1000, seed: int = 0, title: str = "LLaSO-Eval"
) -> dict[str, Any]:
    """Return the content of a board.

    Args:
        scored: systems with their rows under strict, and optionally under paper too.
        resamples: of the bootstrap of ranks.
        seed: of the bootstrap.
        title: heading of the page.

    Returns:
        The content of board.json: `systems`, and `views`, one for each task and format and for the mean over tasks,
        each with its systems from best to worst.

    Raises:
        ValueError: fewer than two systems, one system twice, systems without rows, or too few draws.
    """
    main = [one for one in scored if one.protocol == MAIN]
    names = [one.system for one in main]
    if len(main) < 2:
        raise ValueError(f"a board needs at least two systems scored under {MAIN}, found {len(main)}")
    if len(set(names)) < len(names):
        raise ValueError(f"systems of one name: {', '.join(names)}; name them apart with `llaso eval score --system`")
    if resamples < 1:
        raise ValueError(f"ranks need at least one resample, found {resamples}")
    for one in main:
        if not one.rows:
            raise ValueError(f"{one.path or one.system}: the scores have no rows with them; {AGAIN}")
    other = {one.system: one.content for one in scored if one.protocol == OTHER}
    measured = _measure(main, resamples, seed)
    views = []
    for modality in (None, *MODALITIES):
        groups = {name: group_tasks(files, modality) for name, files in measured.items()}
        tasks = [task for task in TASKS if sum(task in one for one in groups.values()) > 1]
        if modality is None or len(tasks) > 1:
            views.append(_mean_view(groups, modality, other))
        views += [_task_view(task, groups, modality, other) for task in tasks]
    return {
        "schema": 1,
        "title": title,
        "protocol": MAIN,
        "settings": {"resamples": resamples, "seed": seed, "level": LEVEL},
        "systems": [_system(one, other.get(one.system)) for one in main],
        "views": [view for view in views if view is not None],
    }


def _measure(systems: Sequence[Scored], resamples: int, seed: int) -> dict[str, dict[str, ScoredFile]]:
    """Return every system's files, on common draws and on the rows that all systems with the file have."""
    tables, clusters, rows_of = {}, {}, {}
    for system in systems:
        for file, rows in system.rows.items():
            common = set.intersection(
                *({one.row.id for one in each.rows[file]} for each in systems if file in each.rows)
            )
            kept = [one for one in rows if one.row.id in common]
            if not kept:
                continue
            metrics = ranking_metrics(TASKS[kept[0].row.task].kind, MAIN)
            named = [metric.name for metric in metrics]
            named += [metric.baseline for metric in metrics if isinstance(metric.baseline, str)]
            key = f"{system.system}\n{file}"
            tables[key] = FileMetrics([one.quantities for one in kept], MAIN, list(dict.fromkeys(named)))
            clusters[key] = [one.row.cluster for one in kept]
            rows_of[key] = kept
    estimates = estimate(tables, clusters, resamples, seed)
    measured: dict[str, dict[str, ScoredFile]] = {}
    for key, table in tables.items():
        name, _, file = key.partition("\n")
        measured.setdefault(name, {})[file] = ScoredFile(rows_of[key], table, estimates[key])
    return measured


def _task_view(
    task: str, groups: Mapping[str, Mapping[str, ScoredTask]], modality: str | None, other: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return one task's systems, ranked by the first metric that all of them have."""
    having = {name: one[task] for name, one in groups.items() if task in one}
    shared = [
        metric
        for metric in ranking_metrics(TASKS[task].kind, MAIN)
        if all(math.isfinite(_value(one, metric.name)) for one in having.values())
    ]
    if not shared:
        return None
    metric = shared[0]
    found = {name: one.estimates[metric.name] for name, one in having.items()}
    entries = _ranked(found, metric.better)
    for entry in entries:
        group = having[entry["system"]]
        entry |= {"coverage": group.coverage, "n": group.n}
        content = other.get(entry["system"], {})
        part = content if modality is None else content.get("modalities", {}).get(modality, {})
        primary = part.get("tasks", {}).get(task, {}).get("primary")
        entry["paper"] = {key: primary[key] for key in ("metric", "value", "direction")} if primary else None
    _rank_papers(entries)
    return {
        "task": task,
        "name": TASKS[task].name,
        "modality": modality,
        "metric": metric.name,
        "better": metric.better,
        "tasks": [task],
        "entries": entries,
    }


def _mean_view(
    groups: Mapping[str, Mapping[str, ScoredTask]], modality: str | None, other: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return all systems by their mean skill over the tasks that each of them has."""
    skills = {
        name: skill_scores({task: one.estimates for task, one in tasks.items()})
        for name, tasks in groups.items()
        if tasks
    }
    shared = [
        task
        for task in TASKS
        if all(task in one for one in skills.values())
        and len({ranking_metric(task, groups[name][task].estimates, MAIN) for name in skills}) == 1
    ]
    if not shared or len(skills) < 2:
        return None
    found = {name: overall({task: one[task] for task in shared}) for name, one in skills.items()}
    panels = {name: other[name]["normalized"]["panel"]["tasks"] for name in skills if name in other}
    common = [task for task in shared if all(task in one for one in panels.values())] if modality is None else []
    entries = _ranked(found, "higher")
    for entry in entries:
        tasks = [groups[entry["system"]][task] for task in shared]
        n = sum(one.n for one in tasks)
        entry |= {"n": n, "coverage": sum(one.coverage * one.n for one in tasks) / n}
        panel = panels.get(entry["system"])
        values = [panel[task]["value"] for task in common] if panel else []
        entry["paper"] = (
            {"metric": "panel", "value": sum(values) / len(values), "direction": "higher"} if values else None
        )
    _rank_papers(entries)
    return {
        "task": None,
        "name": "all tasks",
        "modality": modality,
        "metric": "skill",
        "better": "higher",
        "tasks": shared,
        "entries": entries,
    }


def _value(group: ScoredTask, metric: str) -> float:
    return group.estimates[metric].value if metric in group.estimates else math.nan


def _ranked(found: Mapping[str, BootstrapEstimate], better: str) -> list[dict[str, Any]]:
    """Return systems from best to worst, with the interval of each value and of each rank."""
    names = list(found)
    now = ranks(np.array([[found[name].value] for name in names]), better)[:, 0]
    drawn = ranks(np.array([found[name].replicates for name in names]), better)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=1, method="inverted_cdf")
    entries = []
    for number in np.argsort(now, kind="stable"):
        interval = found[names[number]].interval() or (None, None)
        entries.append(
            {
                "system": names[number],
                "value": found[names[number]].value,
                "low": interval[0],
                "high": interval[1],
                "rank": int(now[number]),
                "rank_low": int(low[number]),
                "rank_high": int(high[number]),
                "best_share": float((drawn[number] == 1).mean()),
            }
        )
    return entries


def _rank_papers(entries: Sequence[dict[str, Any]]) -> None:
    """Add each system's rank under paper among those that have a value in one metric there."""
    papers = [entry["paper"] for entry in entries if entry["paper"] and entry["paper"]["value"] is not None]
    if len({one["metric"] for one in papers}) == 1:
        for one, rank in zip(
            papers, ranks(np.array([[one["value"]] for one in papers]), papers[0]["direction"])[:, 0], strict=True
        ):
            one["rank"] = int(rank)


def _system(one: Scored, paper: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a system's row of the board shows whatever the view."""
    normalized = one.content["normalized"]
    return {
        "name": one.system,
        "n": one.content["n"],
        "coverage": one.content["coverage"],
        "skill": {key: normalized["skill"][key] for key in ("value", "low", "high", "n_tasks")},
        "panel": normalized["panel"]["value"],
        "paper_panel": paper["normalized"]["panel"]["value"] if paper else None,
        "speed": main_run(one.content["speed"]),
        "gap": _format_gap(one.content),
    }


def _format_gap(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the gap between the best and the worst modality format, over the tasks asked in every format."""
    formats = {
        name: part["normalized"]["skill"]["tasks"]
        for name, part in content["modalities"].items()
        if part["normalized"]["skill"] is not None
    }
    shared = [task for task in TASKS if formats and all(task in tasks for tasks in formats.values())]
    if len(formats) < 2 or not shared:
        return None
    means = {name: sum(tasks[task]["value"] for task in shared) / len(shared) for name, tasks in formats.items()}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return {"value": means[best] - means[worst], "best": best, "worst": worst, "tasks": shared}


# The page ------------------------------------------------------------------------------------------------------


def write_board(
    scored: Sequence[Scored], out: str | Path, *, resamples: int = 1000, seed: int = 0, title: str = "LLaSO-Eval"
) -> Path:
    """Write the board as one page that needs nothing else, and its numbers as JSON.

    Args:
        scored: see `board`.
        out: the folder to write; holds index.html and board.json at the end.
        resamples: of the bootstrap of ranks.
        seed: of the bootstrap.
        title: heading of the page.

    Returns:
        `out`.
    """
    content = board(scored, resamples=resamples, seed=seed, title=title)
    out = Path(out)
    write_atomically(out / "index.html", render_board(content))
    write_atomically(out / "board.json", json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return out


def render_board(content: Mapping[str, Any]) -> str:
    """Return the page of a board. What others named reaches it escaped."""
    systems = {one["name"]: one for one in content["systems"]}
    numbers = {name: number for number, name in enumerate(systems)}
    points = [
        (one["speed"]["rtfx"], one["skill"]["value"], (one["skill"]["low"], one["skill"]["high"]), name, numbers[name])
        for name, one in systems.items()
        if one["speed"] and one["speed"]["rtfx"] and one["skill"]["value"] is not None
    ]
    return (
        environment("board.html")
        .get_template("board.html")
        .render(
            **{key: value for key, value in content.items() if key != "systems"},
            systems=systems,
            css=(TEMPLATES / "report.css").read_text(encoding="utf-8")
            + (TEMPLATES / "board.css").read_text(encoding="utf-8"),
            script=(TEMPLATES / "board.js").read_text(encoding="utf-8"),
            modality_names=MODALITY_NAMES,
            titles={name: metric.title or name for name, metric in METRICS.items()}
            | {"skill": "skill", "panel": "panel"},
            rank_svg=rank_svg,
            picture=scatter_svg(points, ("seconds of audio answered in a second", "skill")) if points else None,
        )
    )
