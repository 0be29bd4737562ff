"""Scores one system: answers in, `scores.json` out, under a stated protocol.

Files are measured row by row, tasks are the unweighted mean of their files, and every number carries the rows it
rests on and its bootstrap interval. `data/scores.schema.json` documents the output.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import paper, strict
from .intervals import Estimate, Resampler, mean, total
from .metrics import Table
from .normalized_scores import PERFECT, baseline_metric, content, panel_scores, ranking_metric, skill_scores
from .panel import Panel, load_panel
from .parsing import ANSWERED, OUTCOMES
from .readers import Answers, Row, check_row, read, task_of
from .task_metrics import BASELINES, CATEGORIES, COUNTS, MODALITIES, TASKS, direction, primary_metrics

SCHEMA = 1
PROTOCOLS = ("strict", "paper")

Estimates = dict[str, Estimate]


@dataclass
class Measured:
    """One file: its rows, their table, every metric as an estimate, and the same by source where it mixes several."""

    rows: list[Row]
    table: Table
    estimates: Estimates
    sources: dict[str, Estimates] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.rows[0].task


@dataclass
class Group:
    """Files of one task: the unweighted mean of each metric (counts are added), and where the rows ended up."""

    task: str
    files: list[str]
    n: int
    estimates: Estimates
    outcomes: Counter[str]

    @property
    def coverage(self) -> float:
        return self.outcomes[ANSWERED] / self.n


def measure_rows(rows: Sequence[Row], protocol: str, normalization: str = "whisper_english") -> Table:
    """Measure the rows of one file under `protocol`.

    Raises:
        ValueError: the protocol is not one of `PROTOCOLS`.
    """
    if protocol == "strict":
        return strict.measure(rows, normalization)
    if protocol == "paper":
        return paper.measure(rows)
    raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")


def estimate(
    tables: Mapping[str, Table], clusters: Mapping[str, Sequence[str]], resamples: int, seed: int
) -> dict[str, Estimates]:
    """Every metric of every table with its bootstrap distribution, all on common draws of source recordings.

    Args:
        tables: by any key.
        clusters: the source recording of each row, by the same keys.
        resamples: how many draws.
        seed: of the draws.
    """
    sums = Resampler(clusters, resamples, seed).sums({key: table.matrix() for key, table in tables.items()})
    estimates = {}
    for key, table in tables.items():
        values, replicates = table.values(), table.evaluate(sums[key])
        estimates[key] = {
            name: Estimate(values[name], metric.n, replicates[name]) for name, metric in table.metrics.items()
        }
    return estimates


def measure(
    files: Mapping[str, list[Row]],
    protocol: str,
    *,
    normalization: str = "whisper_english",
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Measured]:
    """Measure every file, and within files that mix source corpora each of those."""
    tables = {file: measure_rows(rows, protocol, normalization) for file, rows in files.items()}
    clusters = {file: [row.cluster for row in rows] for file, rows in files.items()}
    parts: dict[str, tuple[str, str]] = {}
    for file, rows in files.items():
        sources = sorted({row.source for row in rows})
        for source in sources if len(sources) > 1 else ():
            chosen = [index for index, row in enumerate(rows) if row.source == source]
            key = f"{file}\n{source}"
            parts[key] = (file, source)
            tables[key] = tables[file].subset(chosen)
            clusters[key] = [rows[index].cluster for index in chosen]
    estimates = estimate(tables, clusters, resamples, seed)
    measured = {file: Measured(rows, tables[file], estimates[file]) for file, rows in files.items()}
    for key, (file, source) in parts.items():
        measured[file].sources[source] = estimates[key]
    return measured


def group_tasks(measured: Mapping[str, Measured], modality: str | None = None) -> dict[str, Group]:
    """The measured files by task, in the order of `TASKS`; of one modality format only where it is named."""
    by_task: dict[str, list[str]] = {}
    for file, one in measured.items():
        if modality in (None, one.rows[0].modality):
            by_task.setdefault(one.task, []).append(file)
    groups = {}
    for task in TASKS:
        if task not in by_task:
            continue
        files = by_task[task]
        names = list(dict.fromkeys(name for file in files for name in measured[file].estimates))
        estimates = {}
        for name in names:
            parts = [measured[file].estimates[name] for file in files if name in measured[file].estimates]
            estimates[name] = total(parts) if name in COUNTS else mean(parts)
        outcomes: Counter[str] = Counter()
        for file in files:
            outcomes.update(measured[file].table.outcomes)
        groups[task] = Group(task, files, sum(len(measured[file].rows) for file in files), estimates, outcomes)
    return groups


# Output --------------------------------------------------------------------------------------------------------


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def entry(estimate: Estimate) -> dict[str, Any]:
    """One metric as it stands in scores.json."""
    interval = estimate.interval()
    low, high = interval if interval else (None, None)
    return {"value": _number(estimate.value), "n": estimate.n, "low": low, "high": high}


def _primary(task: str, estimates: Estimates, coverage: float, protocol: str) -> dict[str, Any] | None:
    """The ranking metric with all a reader needs to judge it: interval, coverage, baseline, direction."""
    candidates = [name for name in primary_metrics(TASKS[task], protocol) if name in estimates]
    if not candidates:
        return None
    name = ranking_metric(task, estimates, protocol) or candidates[0]
    baseline = baseline_metric(name) if protocol == "strict" else None
    value = baseline if isinstance(baseline, float) else estimates[baseline].value if baseline else None
    return {
        "metric": name,
        **entry(estimates[name]),
        "coverage": coverage,
        "direction": direction(name),
        "perfect": PERFECT.get(name),
        "baseline": {
            "metric": baseline if isinstance(baseline, str) else None,
            "value": None if value is None else _number(value),
        },
    }


def _outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    return {outcome: counts.get(outcome, 0) for outcome in OUTCOMES}


def _file_entry(one: Measured, answers: Answers, file: str, protocol: str) -> dict[str, Any]:
    row, counts = one.rows[0], Counter(one.table.outcomes)
    coverage = counts[ANSWERED] / len(one.rows)
    primary = _primary(row.task, one.estimates, coverage, protocol)
    described = {
        "task": row.task,
        "category": row.category,
        "modality": row.modality,
        "n": len(one.rows),
        "coverage": coverage,
        "outcomes": _outcomes(counts),
        "primary": primary,
        "metrics": {name: entry(estimate) for name, estimate in one.estimates.items()},
    }
    if one.sources and primary is not None:
        described["sources"] = {source: entry(parts[primary["metric"]]) for source, parts in one.sources.items()}
    if one.table.confusion is not None:
        described["confusion"] = one.table.confusion
    if file in answers.judged or "judge_score" in one.estimates:
        judged = sum(row.judge_score is not None for row in one.rows)
        described["judgements"] = {
            "judged": judged,
            "missing": len(one.rows) - judged,
            "unusable_lines": answers.judge_unreadable.get(file, 0),
        }
    if file in answers.published_abstention:
        described["published_abstention_rate"] = answers.published_abstention[file]
    return described


def _group_entry(group: Group, protocol: str) -> dict[str, Any]:
    return {
        "name": TASKS[group.task].name,
        "category": TASKS[group.task].category,
        "files": group.files,
        "n": group.n,
        "coverage": group.coverage,
        "outcomes": _outcomes(group.outcomes),
        "primary": _primary(group.task, group.estimates, group.coverage, protocol),
        "metrics": {name: entry(estimate) for name, estimate in group.estimates.items()},
    }


def _normalized(
    groups: Mapping[str, Group], protocol: str, panel: Panel, modality: str | None = None
) -> dict[str, Any]:
    """The panel and skill scores of a set of tasks."""
    estimates = {task: group.estimates for task, group in groups.items()}
    against = panel_scores(estimates, panel, modality)
    return {
        "panel": {"name": panel.name, "version": panel.version} | content(against, len(panel.bounds(modality))),
        "skill": content(skill_scores(estimates), len(groups)) if protocol == "strict" else None,
    }


def _summary(groups: Mapping[str, Group], protocol: str, panel: Panel, modality: str | None) -> dict[str, Any]:
    """A category or modality format: how much was answered and the normalized scores over its tasks."""
    outcomes: Counter[str] = Counter()
    for group in groups.values():
        outcomes.update(group.outcomes)
    n = sum(group.n for group in groups.values())
    return {
        "tasks": list(groups),
        "n": n,
        "coverage": outcomes[ANSWERED] / n,
        "outcomes": _outcomes(outcomes),
        "normalized": _normalized(groups, protocol, panel, modality),
    }


def assemble(
    answers: Answers, measured: Mapping[str, Measured], protocol: str, panel: Panel, settings: dict[str, Any]
) -> dict[str, Any]:
    """The content of scores.json from measured files."""
    groups = group_tasks(measured)
    modalities = {}
    for modality in MODALITIES:
        part = group_tasks(measured, modality)
        if part:
            modalities[modality] = _summary(part, protocol, panel, modality) | {
                "tasks": {task: _group_entry(group, protocol) for task, group in part.items()}
            }
    categories = {}
    for category in CATEGORIES:
        chosen = {task: group for task, group in groups.items() if TASKS[task].category == category}
        if chosen:
            categories[category] = _summary(chosen, protocol, panel, None)
    overall = _summary(groups, protocol, panel, None)
    return {
        "schema": SCHEMA,
        "protocol": protocol,
        "system": answers.system,
        "settings": settings,
        "n": overall["n"],
        "coverage": overall["coverage"],
        "outcomes": overall["outcomes"],
        "normalized": overall["normalized"],
        "tasks": {task: _group_entry(group, protocol) for task, group in groups.items()},
        "categories": categories,
        "modalities": modalities,
        "files": {file: _file_entry(one, answers, file, protocol) for file, one in sorted(measured.items())},
    }


def row_records(measured: Mapping[str, Measured]) -> Iterable[dict[str, Any]]:
    """What was read from every answer: outcome, value, and the row's own share in its task's ranking metric."""
    for _, one in sorted(measured.items()):
        for row, outcome, value, points in zip(
            one.rows, one.table.outcomes, one.table.parsed, one.table.row_scores, strict=True
        ):
            yield {
                "file": row.file,
                "id": row.id,
                "task": row.task,
                "outcome": outcome,
                "parsed": value if isinstance(value, str | float | int) else None,
                "score": _number(float(points)),
            }


def score(
    path: Path | str,
    *,
    protocol: str = "strict",
    intervals: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    normalization: str = "whisper_english",
    system: str | None = None,
    panel: Path | str | None = None,
    rows_out: Path | str | None = None,
) -> dict[str, Any]:
    """Score the answers in a folder.

    Args:
        path: a folder of released files or of our own predictions; see `readers.read`.
        protocol: "strict" (sound) or "paper" (the authors' arithmetic, faults included).
        intervals: whether to bootstrap 95 % intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        normalization: of transcripts under strict, see `normalization.NORMALIZATIONS`.
        system: its name in the output; the folder's name by default.
        panel: a panel file; the shipped one of the protocol by default.
        rows_out: a file for what was read from every answer, one JSON line a row.

    Returns:
        The content of scores.json, as `data/scores.schema.json` describes it.

    Raises:
        ValueError: bad input; the message names file, line and remedy.
        FileNotFoundError: `path` is not a folder.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    answers = read(path, system)
    drawn = resamples if intervals else 0
    measured = measure(answers.files, protocol, normalization=normalization, resamples=drawn, seed=seed)
    settings: dict[str, Any] = {"resamples": drawn, "seed": seed, "level": 0.95}
    if protocol == "strict":
        settings["normalization"] = normalization
    if rows_out is not None:
        Path(rows_out).parent.mkdir(parents=True, exist_ok=True)
        with open(rows_out, "w", encoding="utf-8") as lines:
            for record in row_records(measured):
                lines.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return assemble(answers, measured, protocol, load_panel(protocol, panel), settings)


def metric_names(scores: Mapping[str, Any]) -> list[str]:
    """The names of all metrics in `scores` that measure answers, baselines left out."""
    names = dict.fromkeys(name for file in scores["files"].values() for name in file["metrics"])
    return [name for name in names if name not in BASELINES]


# Texts ---------------------------------------------------------------------------------------------------------


def score_texts(
    predictions: Sequence[str],
    references: Sequence[str],
    tasks: str | Sequence[str],
    choices: Sequence[str] | Sequence[Sequence[str]] | None = None,
    protocol: str = "strict",
    normalization: str = "whisper_english",
) -> dict[str, dict[str, Any]]:
    """Score answers given as plain texts, without files.

    Args:
        predictions: the model's texts.
        references: the right answers.
        tasks: the task code of every text, or one code for all.
        choices: the labels offered: one list for all texts, or one a text (empty where a task has none).
        protocol: "strict" or "paper".
        normalization: of transcripts under strict.

    Returns:
        Task code -> its metrics, `n`, and under `outcomes` where the texts ended up. An undefined metric is None.

    Raises:
        ValueError: lengths differ, a task is unknown, or a reference is not among its choices.
    """
    count = len(predictions)
    if len(references) != count:
        raise ValueError(f"{count} predictions but {len(references)} references")
    codes = [tasks] * count if isinstance(tasks, str) else list(tasks)
    if len(codes) != count:
        raise ValueError(f"{count} predictions but {len(codes)} tasks")
    offered = _offered(choices, count)
    by_task: dict[str, list[Row]] = {}
    for index, (prediction, reference, code, labels) in enumerate(
        zip(predictions, references, codes, offered, strict=True)
    ):
        task = task_of(code, labels)
        if task not in TASKS:
            raise ValueError(f"item {index}: unknown task {task!r}; tasks are {', '.join(TASKS)}")
        row = Row(
            file=task,
            id=str(index),
            where=f"item {index}",
            task=task,
            modality="text_audio",
            source="",
            prediction=prediction,
            reference=reference,
            choices=labels,
            error=None,
            cluster=str(index),
        )
        check_row(row)
        by_task.setdefault(task, []).append(row)
    results = {}
    for task, rows in by_task.items():
        table = measure_rows(rows, protocol, normalization)
        results[task] = {name: _number(value) for name, value in table.values().items()} | {
            "n": len(rows),
            "outcomes": _outcomes(Counter(table.outcomes)),
        }
    return results


def _offered(choices: Sequence[str] | Sequence[Sequence[str]] | None, count: int) -> list[tuple[str, ...]]:
    """The labels of each of `count` texts."""
    if choices is None:
        return [()] * count
    if all(isinstance(choice, str) for choice in choices):
        return [tuple(str(choice) for choice in choices)] * count
    if len(choices) != count or any(isinstance(labels, str) for labels in choices):
        raise ValueError(f"choices must be one list of labels for all, or {count} lists; found {len(choices)} items")
    return [tuple(labels) for labels in choices]
