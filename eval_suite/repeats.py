"""Summarizes several answers to each question: their spread, their agreement and the majority's answer.

Answers belong together if they were sampled for one row (`generate --samples`), or if they answer one recording, task
and reference under differently worded instructions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import METRICS
from .parsing import ANSWERED
from .score import file_metrics
from .scored_rows import Scored, ScoredRow
from .task_metrics import TASKS


def repeat_scores(scored: Scored) -> dict[str, Any]:
    """Return by task what repeated answers show, for tasks that were answered several times.

    Returns:
        task -> `samples` and `wordings`, each None or as `spread` describes it.
    """
    content = {}
    for task in TASKS:
        rows = [one for file in scored.rows.values() for one in file if one.row.task == task]
        by_row: dict[Any, list[ScoredRow]] = {}
        by_question: dict[Any, list[ScoredRow]] = {}
        for one in rows:
            by_row.setdefault((one.row.file, one.row.repeat_of or one.row.id), []).append(one)
            if one.row.repeat_of is None:
                key = (one.row.cluster, one.row.reference, one.row.choices)
                by_question.setdefault(key, []).append(one)
        primary = scored.content["tasks"].get(task, {}).get("primary")
        found = {
            "samples": spread(by_row, scored.protocol, primary),
            "wordings": spread(
                {
                    key: group
                    for key, group in by_question.items()
                    if len({one.row.instruction for one in group}) == len(group)
                },
                scored.protocol,
                primary,
            ),
        }
        if any(found.values()):
            content[task] = found
    return content


def spread(
    groups: Mapping[Any, Sequence[ScoredRow]], protocol: str, primary: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return how groups of answers to one question vary.

    Args:
        groups: answers by question; groups of one are left out.
        protocol: that they were scored under.
        primary: the task's ranking metric as scores.json holds it.

    Returns:
        None if no question was answered twice. Else `questions` and `answers`; `agreement`, the share of pairs of
        answers to a question that were read alike; `within` and `between`, the standard deviations of the row scores
        within a question and between questions (one-way analysis of variance; the latter is 0 if the former explains
        it all); `metric`, `first` and `majority`: the ranking metric of the first answers, and of the answers that
        most of a question's readable ones agree with.
    """
    several = [list(group) for group in groups.values() if len(group) > 1]
    if not several:
        return None
    alike = pairs = 0
    majority = []
    for group in several:
        counts = Counter(_read(one) for one in group)
        alike += sum(count * (count - 1) // 2 for count in counts.values())
        pairs += len(group) * (len(group) - 1) // 2
        readable = Counter(_read(one) for one in group if one.reading.outcome == ANSWERED)
        chosen = readable.most_common(1)[0][0] if readable else None
        majority.append(next((one for one in group if _read(one) == chosen), group[0]))
    within, between = variance_parts([[one.score for one in group if one.score is not None] for group in several])
    metric = primary["metric"] if primary else None
    content: dict[str, Any] = {
        "questions": len(several),
        "answers": sum(map(len, several)),
        "agreement": alike / pairs,
        "within": within,
        "between": between,
        "metric": metric,
    }
    for name, rows in (("first", [group[0] for group in several]), ("majority", majority)):
        value = file_metrics(rows, protocol, [metric]).values().get(metric, np.nan) if metric in METRICS else np.nan
        content[name] = value if np.isfinite(value) else None
    return content


def _read(one: ScoredRow) -> str:
    """Return what was read of an answer, as text that two equal readings share."""
    if one.reading.normalized is not None:
        return one.reading.normalized[1]
    return json.dumps([one.reading.outcome, one.reading.parsed], sort_keys=True)


def variance_parts(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Return the standard deviations within groups and between groups, by one-way analysis of variance.

    Args:
        groups: values by group, of any sizes; empty ones are left out.

    Returns:
        None for both if no group has two values or there is one group only.
    """
    arrays = [np.array(group, dtype=np.float64) for group in groups if len(group)]
    total = sum(map(len, arrays))
    if len(arrays) < 2 or total == len(arrays):
        return None, None
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in arrays) / (total - len(arrays))
    grand = float(np.concatenate(arrays).mean())
    mean_square = sum(len(values) * (float(values.mean()) - grand) ** 2 for values in arrays) / (len(arrays) - 1)
    size = (total - sum(len(values) ** 2 for values in arrays) / total) / (len(arrays) - 1)
    return within**0.5, max(0.0, (mean_square - within) / size) ** 0.5
