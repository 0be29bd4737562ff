"""Scores one system: answers in, `scores.json` and what was read of every row out, under a stated protocol.

Rows are read one by one, files are measured over their rows, tasks are the unweighted mean of their files, and every
number carries the rows it rests on and its bootstrap interval. `data/scores.schema.json` documents the output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import paper, strict
from .intervals import LEVEL, BootstrapEstimate, Resampler, mean, total
from .metrics import METRICS, PROTOCOLS, FileMetrics, Labels, Quantities, ranking_metrics
from .panel import Panel, load_panel
from .parsing import ANSWERED, OUTCOMES
from .readers import AnsweredRow, SystemAnswers, check_row, read, task_of
from .scored_rows import SCHEMA, Scored, ScoredRow
from .skill_and_panel import baseline_estimate, content, panel_scores, ranking_metric, skill_scores
from .task_metrics import CATEGORIES, MODALITIES, TASKS

Estimates = dict[str, BootstrapEstimate]


@dataclass
class ScoredFile:
    """One file: its rows, every metric with its bootstrap, and the ranking metric by source if it mixes several."""

    rows: list[ScoredRow]
    metrics: FileMetrics
    estimates: Estimates
    sources: Estimates = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.rows[0].row.task

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(one.reading.outcome for one in self.rows)


@dataclass
class ScoredTask:
    """Files of one task: the unweighted mean of each metric (counts are added), and the outcomes of their rows."""

    task: str
    files: list[str]
    n: int
    estimates: Estimates
    outcomes: Counter[str]

    @property
    def coverage(self) -> float:
        return self.outcomes[ANSWERED] / self.n


def read_rows(rows: Sequence[AnsweredRow], protocol: str, normalization: str = "whisper_english") -> list[ScoredRow]:
    """Read the rows of one file under `protocol`.

    Raises:
        ValueError: the protocol is not one of `PROTOCOLS`, or a reference cannot be scored.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    readings = strict.read_rows(rows, normalization) if protocol == "strict" else paper.read_rows(rows)
    return [ScoredRow(row, reading) for row, reading in zip(rows, readings, strict=True)]


def file_metrics(rows: Sequence[ScoredRow], protocol: str, only: Sequence[str] | None = None) -> FileMetrics:
    """Return the metrics of scored rows; of `only` the named ones, all by default."""
    return FileMetrics([one.quantities for one in rows], protocol, only)


def estimate(
    tables: Mapping[str, FileMetrics], clusters: Mapping[str, Sequence[str]], resamples: int, seed: int
) -> dict[str, Estimates]:
    """Return every metric of every table with its bootstrap distribution, all on common draws of source recordings.

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
            name: BootstrapEstimate(values[name], statistic.n, replicates[name])
            for name, statistic in table.statistics.items()
        }
    return estimates


def measure(
    files: Mapping[str, list[ScoredRow]], protocol: str, *, resamples: int = 0, seed: int = 0
) -> dict[str, ScoredFile]:
    """Measure every file, and the ranking metric of each source corpus in files that mix several.

    Each row is given its own share in the ranking metric of its file.
    """
    tables = {file: file_metrics(rows, protocol) for file, rows in files.items()}
    clusters = {file: [one.row.cluster for one in rows] for file, rows in files.items()}
    parts: dict[str, tuple[str, str]] = {}
    for file, rows in files.items():
        kind = TASKS[rows[0].row.task].kind
        ranking = tables[file].ranking(kind, protocol)
        points = tables[file].statistics[ranking].by_row() if ranking else [math.nan] * len(rows)
        for one, value in zip(rows, points, strict=True):
            one.score = _number(float(value))
        sources = sorted({one.row.source for one in rows})
        ranking = ranking or _candidate(kind, tables[file], protocol)
        for source in sources if len(sources) > 1 and ranking else ():
            chosen = [one for one in rows if one.row.source == source]
            key = f"{file}\n{source}"
            parts[key] = (file, source)
            tables[key] = file_metrics(chosen, protocol, [str(ranking)])
            clusters[key] = [one.row.cluster for one in chosen]
    estimates = estimate(tables, clusters, resamples, seed)
    measured = {file: ScoredFile(rows, tables[file], estimates[file]) for file, rows in files.items()}
    for key, (file, source) in parts.items():
        measured[file].sources[source] = next(iter(estimates[key].values()))
    return measured


def _candidate(kind: str, table: FileMetrics, protocol: str) -> str | None:
    """Return the metric that would rank answers of a kind if it had a value."""
    return next((one.name for one in ranking_metrics(kind, protocol) if one.name in table.statistics), None)


def group_tasks(measured: Mapping[str, ScoredFile], modality: str | None = None) -> dict[str, ScoredTask]:
    """Return the measured files by task, in the order of `TASKS`; of one modality format only if it is named."""
    by_task: dict[str, list[str]] = {}
    for file, one in measured.items():
        if modality in (None, one.rows[0].row.modality):
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
            estimates[name] = total(parts) if METRICS[name].adds_up else mean(parts)
        outcomes: Counter[str] = Counter()
        for file in files:
            outcomes.update(measured[file].outcomes)
        groups[task] = ScoredTask(task, files, sum(len(measured[file].rows) for file in files), estimates, outcomes)
    return groups


# Output --------------------------------------------------------------------------------------------------------


def _number(value: float) -> float | None:
    """Return a number as JSON holds it: None for nan."""
    return value if math.isfinite(value) else None


def entry(estimate: BootstrapEstimate) -> dict[str, Any]:
    """Return one metric as it stands in scores.json."""
    interval = estimate.interval()
    low, high = interval if interval else (None, None)
    return {"value": _number(estimate.value), "n": estimate.n, "low": low, "high": high}


def _primary(task: str, estimates: Estimates, coverage: float, protocol: str) -> dict[str, Any] | None:
    """Return the ranking metric with all that is needed to judge it: interval, coverage, baseline, direction."""
    candidates = [one.name for one in ranking_metrics(TASKS[task].kind, protocol) if one.name in estimates]
    if not candidates:
        return None
    metric = METRICS[ranking_metric(task, estimates, protocol) or candidates[0]]
    trivial = baseline_estimate(metric.name, estimates) if protocol == "strict" else None
    return {
        "metric": metric.name,
        **entry(estimates[metric.name]),
        "coverage": coverage,
        "direction": metric.better,
        "perfect": metric.perfect,
        "baseline": {
            "metric": metric.baseline if trivial is not None and isinstance(metric.baseline, str) else None,
            "value": None if trivial is None else _number(trivial.value),
        },
    }


def _outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    return {outcome: counts.get(outcome, 0) for outcome in OUTCOMES}


def _file_entry(one: ScoredFile, answers: SystemAnswers, file: str, protocol: str) -> dict[str, Any]:
    row, counts = one.rows[0].row, one.outcomes
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
        described["sources"] = {source: entry(part) for source, part in one.sources.items()}
    if all(scored.row.choices for scored in one.rows):
        # Without choices, answers are open text, and their matrix says nothing.
        if (labels := Labels.of(Quantities([scored.quantities for scored in one.rows]))) is not None:
            described["confusion"] = labels.confusion()
    if file in answers.judged or "judge_score" in one.estimates:
        judged = sum(scored.row.judge_score is not None for scored in one.rows)
        described["judgements"] = {
            "judged": judged,
            "missing": len(one.rows) - judged,
            "unusable_lines": answers.judge_unreadable.get(file, 0),
        }
    if file in answers.published_abstention:
        described["published_abstention_rate"] = answers.published_abstention[file]
    return described


def _group_entry(group: ScoredTask, protocol: str) -> dict[str, Any]:
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
    groups: Mapping[str, ScoredTask], protocol: str, panel: Panel, modality: str | None = None
) -> dict[str, Any]:
    """Return the panel and skill scores of a set of tasks."""
    estimates = {task: group.estimates for task, group in groups.items()}
    against = panel_scores(estimates, panel, modality)
    return {
        "panel": {"name": panel.name, "version": panel.version} | content(against, len(panel.bounds(modality))),
        "skill": content(skill_scores(estimates), len(groups)) if protocol == "strict" else None,
    }


def _summary(groups: Mapping[str, ScoredTask], protocol: str, panel: Panel, modality: str | None) -> dict[str, Any]:
    """Return a category or modality format: how much was answered, and skill and panel over its tasks."""
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
    answers: SystemAnswers, measured: Mapping[str, ScoredFile], protocol: str, panel: Panel, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of scores.json from measured files."""
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
        "rows": None,
        "generation": answers.generation,
        "speed": answers.speed,
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


def score_rows(
    path: Path | str,
    *,
    protocol: str = "strict",
    intervals: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    normalization: str = "whisper_english",
    system: str | None = None,
    panel: Path | str | None = None,
    answer_after: str | None = None,
) -> Scored:
    """Score the answers in a folder and keep what was read of every row.

    Args:
        path: a folder of released files or of our own predictions; see `readers.read`.
        protocol: "strict" (sound) or "paper" (the authors' arithmetic, faults included).
        intervals: whether to bootstrap 95 % intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        normalization: of transcripts under strict, see `text_normalization.NORMALIZATIONS`.
        system: its name in the output; the folder's name by default.
        panel: a panel file; the shipped one of the protocol by default.
        answer_after: in a reply that holds this text, the answer is what follows its last occurrence; a reply without
            it is an answer as it stands. For models that write a transcript first.

    Returns:
        The scores, as `data/scores.schema.json` describes them, with their rows.

    Raises:
        ValueError: bad input; the message names file, line and remedy.
        FileNotFoundError: `path` is not a folder.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    answers = read(path, system)
    marked = _cut_before(answers, answer_after) if answer_after else 0
    drawn = resamples if intervals else 0
    rows = {file: read_rows(answered, protocol, normalization) for file, answered in answers.files.items()}
    measured = measure(rows, protocol, resamples=drawn, seed=seed)
    settings: dict[str, Any] = {"resamples": drawn, "seed": seed, "level": LEVEL}
    if protocol == "strict":
        settings["normalization"] = normalization
    if answer_after:
        settings |= {"answer_after": answer_after, "replies_with_mark": marked}
    return Scored(assemble(answers, measured, protocol, load_panel(protocol, panel), settings), rows)


def _cut_before(answers: SystemAnswers, mark: str) -> int:
    """Cut the replies that hold a mark to what follows the last one, in place; return how many do."""
    marked = 0
    for rows in answers.files.values():
        for row in rows:
            if row.prediction is not None and mark in row.prediction:
                row.prediction = row.prediction.rpartition(mark)[2].strip()
                marked += 1
    return marked


def score(path: Path | str, **options: Any) -> dict[str, Any]:
    """Score the answers in a folder; see `score_rows` for the arguments.

    Returns:
        The content of scores.json.
    """
    return score_rows(path, **options).content


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
        choices: the labels offered: one list for all texts, or one a text (empty if a task has none).
        protocol: "strict" or "paper".
        normalization: of transcripts under strict.

    Returns:
        Task code -> its metrics, `n`, and `outcomes`, the number of texts by outcome. An undefined metric is None.

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
    by_task: dict[str, list[AnsweredRow]] = {}
    for index, (prediction, reference, code, labels) in enumerate(
        zip(predictions, references, codes, offered, strict=True)
    ):
        task = task_of(code, labels)
        if task not in TASKS:
            raise ValueError(f"item {index}: unknown task {task!r}; tasks are {', '.join(TASKS)}")
        row = AnsweredRow(
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
        scored = read_rows(rows, protocol, normalization)
        values = file_metrics(scored, protocol).values()
        results[task] = {name: _number(value) for name, value in values.items()} | {
            "n": len(rows),
            "outcomes": _outcomes(Counter(one.reading.outcome for one in scored)),
        }
    return results


def _offered(choices: Sequence[str] | Sequence[Sequence[str]] | None, count: int) -> list[tuple[str, ...]]:
    """Return the labels of each of `count` texts."""
    if choices is None:
        return [()] * count
    if all(isinstance(choice, str) for choice in choices):
        return [tuple(str(choice) for choice in choices)] * count
    if len(choices) != count or any(isinstance(labels, str) for labels in choices):
        raise ValueError(f"choices must be one list of labels for all, or {count} lists; found {len(choices)} items")
    return [tuple(labels) for labels in choices]
