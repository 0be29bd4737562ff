"""Has a language model say which of two systems answered better, row by row, and gives the win rate.

Every pair is asked about in both orders, so that a judge's liking for one place cancels out; a tie counts half. Equal
answers tie, and an answer whose generation failed loses to one that was given: the judge is not asked about those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llaso_common.atomic_write import write_atomically

from . import readers
from .answer_records import Reply
from .corpus import digest
from .intervals import LEVEL, BootstrapEstimate, Resampler, mean
from .judge_models import (
    Judge,
    JudgePrompt,
    JudgeQuestion,
    ask_judge,
    judge_named,
    made_by,
    missing_reasons,
    reply_fields,
    ticket,
)
from .score import entry
from .task_metrics import TASKS

FAMILY = "judge_pairs"
PROMPT = f"{FAMILY}_v1"
CHOICES = {"first": 1.0, "tie": 0.5, "second": 0.0}
"""A judge's possible choices, and the points that each gives the answer shown first."""
BETTER = {"better": {"type": "string", "enum": list(CHOICES)}}
"""The JSON schema of a reply's field `better`, which it has beside its ticket and its explanation."""


class Choice(NamedTuple):
    """Which answer is better, as the judge was shown them, with its reason; or why there is no choice."""

    better: str | None
    explanation: str
    error: str | None = None


class JudgedPair(NamedTuple):
    """A judge's choices between two answers, shown in both orders: as they are, and swapped."""

    shown: Choice
    swapped: Choice

    @property
    def error(self) -> str | None:
        """Why the pair is not judged: both orders are needed."""
        return self.shown.error or self.swapped.error

    @property
    def points(self) -> float:
        """The first answer's points, the mean of both orders: 1 if it won, 0 if it lost."""
        assert self.shown.better is not None and self.swapped.better is not None
        return (CHOICES[self.shown.better] + 1 - CHOICES[self.swapped.better]) / 2

    @property
    def first_place(self) -> tuple[int, int]:
        """How often the answer shown first was chosen, and how often either was."""
        said = [self.shown.better, self.swapped.better]
        return said.count("first"), said.count("first") + said.count("second")


def pair_questions(
    prompt: JudgePrompt, judge: Judge, about: str, instruction: str, reference: str, one: str, other: str
) -> tuple[JudgeQuestion, JudgeQuestion]:
    """Return the questions about two answers, in both orders."""
    asked = {"instruction": instruction, "reference": reference}
    shown, swapped = asked | {"first": one, "second": other}, asked | {"first": other, "second": one}
    return prompt.question(judge, about, shown, BETTER), prompt.question(judge, about, swapped, BETTER)


def parse_choice(reply: str, ticket: str) -> Choice:
    """Read a judge's reply to a pair, see `judge_models.reply_fields`."""
    try:
        fields = reply_fields(reply, ticket, "better")
    except ValueError as error:
        return Choice(None, "", str(error))
    if not isinstance(fields["better"], str) or fields["better"] not in CHOICES:
        return Choice(None, "", f"better is none of {', '.join(CHOICES)}")
    return Choice(fields["better"], fields["explanation"])


def read_choice(reply: Reply, key: str) -> Choice:
    """Return what was chosen in the reply to the question of a key."""
    return Choice(None, "", reply.error) if reply.error is not None else parse_choice(reply.prediction, ticket(key))


def judge_pairs(
    predictions: str | Path,
    against: str | Path,
    judge_model: str | Judge,
    *,
    endpoint: str | None = None,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    max_calls: int | None = None,
    prompt: str = PROMPT,
    batch_size: int = 8,
    revision: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge a system's answers against another's to the same rows.

    Args:
        predictions: a folder of answers, ours or released ones.
        against: the other system's folder.
        judge_model: a local checkpoint or Hub id; with `endpoint`, the model's name there; or a `Judge`.
        endpoint: base address of an OpenAI-compatible chat server.
        out: the folder of the judgements; `<predictions>/pairs/<the other system>` by default.
        tasks: which tasks; by default those whose answers only a judge can grade.
        limit: judge only so many rows, picked by a digest.
        max_calls: ask the judge at most so many questions in this run, two a pair; a later run goes on.
        prompt: name of the prompt file.
        batch_size: questions at once.
        revision: of the judge.
        resamples: of the bootstrap over source recordings.
        seed: of the bootstrap.
        overwrite: write to a folder that holds something else.
        progress: show a bar with the time left.

    Returns:
        What `pairs.json` holds. `win_rate` with its interval: the mean over files, then over tasks, as scores are;
        the same by task; how many pairs were won, lost and tied; how many were `contradicted`, that is, another answer
        chosen in the other order; `first_preferred` and `longer_preferred`, shares of the choices that fell on the
        answer shown first, and on the longer one. `asked` is how many questions this run put.

    Raises:
        ValueError: no such prompt or task, nothing to judge, or a row asks different things of the two systems.
        ConnectionError: the endpoint cannot be reached.
    """
    ours, theirs = readers.read(predictions), readers.read(against)
    words, who = JudgePrompt.load(prompt, FAMILY), judge_named(judge_model, endpoint, revision)
    pairs = _shared(ours, theirs, tasks, limit)
    questions = {
        number: pair_questions(
            words, who, row.id, row.instruction, row.reference, row.prediction or "", rival.prediction or ""
        )
        for number, (row, rival) in enumerate(pairs)
        if _without_asking(row, rival) is None
    }
    folder = Path(out) if out else Path(predictions) / "pairs" / theirs.system
    replies = ask_judge(
        who,
        questions.values(),
        folder,
        batch_size=batch_size,
        max_calls=max_calls,
        overwrite=overwrite,
        progress=progress,
    )
    judged = {
        number: JudgedPair(*(read_choice(replies[one.key], one.key) for one in both))
        for number, both in questions.items()
    }
    points = [_points(pair, judged.get(number)) for number, pair in enumerate(pairs)]
    estimates = _win_rates([row for row, _ in pairs], points, resamples, seed)
    whole = {number: one for number, one in judged.items() if one.error is None}
    clusters = [pairs[number][0].cluster for number in whole]
    first = ratio([one.first_place for one in whole.values()], clusters, resamples, seed)
    longer = ratio([_longer(*pairs[number], one.points) for number, one in whole.items()], clusters, resamples, seed)
    decided = [one for one in points if one is not None]
    summary = made_by(who, words, replies, [one for both in questions.values() for one in both]) | {
        "system": ours.system,
        "against": theirs.system,
        "rows": len(pairs),
        "judged": len(decided),
        "without_asking": len(pairs) - len(questions),
        "missing": len(points) - len(decided),
        "reasons": missing_reasons(one.error for one in judged.values()),
        "won": sum(one > 0.5 for one in decided),
        "tied": sum(one == 0.5 for one in decided),
        "lost": sum(one < 0.5 for one in decided),
        "contradicted": sum(
            {one.shown.better, one.swapped.better} in ({"first"}, {"second"}) for one in whole.values()
        ),
        "win_rate": entry(mean(estimates.values())),
        "tasks": {task: entry(estimate) for task, estimate in estimates.items()},
        "first_preferred": entry(first),
        "longer_preferred": entry(longer),
        "settings": {"resamples": resamples, "seed": seed, "level": LEVEL},
    }
    _write(folder, pairs, points, judged, summary)
    return summary | {"asked": replies.asked}


Pair = tuple[readers.AnsweredRow, readers.AnsweredRow]


def _shared(
    ours: readers.SystemAnswers, theirs: readers.SystemAnswers, tasks: Sequence[str] | None, limit: int | None
) -> list[Pair]:
    """Return the rows to judge with the other system's, in file order."""
    if unknown := [task for task in tasks or () if task not in TASKS]:
        raise ValueError(f"unknown task {', '.join(unknown)}; tasks are {', '.join(TASKS)}")
    rivals = {(row.file, row.id): row for rows in theirs.files.values() for row in rows}
    pairs = []
    for row in (row for rows in ours.files.values() for row in rows):
        rival = rivals.get((row.file, row.id))
        if rival is None or not (row.task in tasks if tasks is not None else TASKS[row.task].kind == "open"):
            continue
        if (row.instruction, row.reference) != (rival.instruction, rival.reference):
            raise ValueError(f"{row.where} and {rival.where}: the same id, but another instruction or reference")
        pairs.append((row, rival))
    if not pairs:
        raise ValueError(
            f"{ours.system} and {theirs.system} share no row to judge; name tasks with --tasks, e.g. --tasks AQA SCR"
        )
    if limit is not None and limit < len(pairs):
        picked = {id(pair) for pair in sorted(pairs, key=lambda pair: digest(pair[0].file, pair[0].id))[:limit]}
        pairs = [pair for pair in pairs if id(pair) in picked]
    return pairs


def _without_asking(row: readers.AnsweredRow, rival: readers.AnsweredRow) -> float | None:
    """Return what a pair is worth to its first answer if no judge is needed to say so, else None."""
    if row.error is not None or rival.error is not None:
        return 0.5 + ((rival.error is not None) - (row.error is not None)) / 2
    return 0.5 if (row.prediction or "").strip() == (rival.prediction or "").strip() else None


def _points(pair: Pair, judged: JudgedPair | None) -> float | None:
    """Return what a pair is worth to its first answer; None if the judgement is missing."""
    if judged is None:
        return _without_asking(*pair)
    return judged.points if judged.error is None else None


def _longer(row: readers.AnsweredRow, rival: readers.AnsweredRow, points: float) -> tuple[float, float]:
    """Return how far the longer of two answers was chosen, and 1 if one is longer and either was chosen."""
    lengths = len(row.prediction or ""), len(rival.prediction or "")
    if lengths[0] == lengths[1] or points == 0.5:
        return 0, 0
    return float((points > 0.5) == (lengths[0] > lengths[1])), 1


def _win_rates(
    rows: Sequence[readers.AnsweredRow], points: Sequence[float | None], resamples: int, seed: int
) -> dict[str, BootstrapEstimate]:
    """Return the win rate of every task: the mean over its files, each the mean over its judged pairs."""
    files: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if points[number] is not None:
            files.setdefault(row.file, []).append(number)
    columns = {file: np.array([[points[number], 1.0] for number in numbers]) for file, numbers in files.items()}
    clusters = {file: [rows[number].cluster for number in numbers] for file, numbers in files.items()}
    drawn = Resampler(clusters, resamples, seed).sums(columns)
    by_task: dict[str, list[BootstrapEstimate]] = {}
    for file, numbers in files.items():
        estimate = _estimate(columns[file].sum(axis=0), drawn[file], len(numbers))
        by_task.setdefault(rows[numbers[0]].task, []).append(estimate)
    return {task: mean(by_task[task]) for task in TASKS if task in by_task}


def ratio(
    parts: Sequence[tuple[float, float]], clusters: Sequence[str], resamples: int, seed: int
) -> BootstrapEstimate:
    """Return the sum of the first parts over the sum of the second, with its draws of clusters."""
    columns = np.array(parts, dtype=np.float64).reshape(-1, 2)
    if not len(columns):
        return BootstrapEstimate(float("nan"), 0, np.empty(0))
    drawn = Resampler({"": clusters}, resamples, seed).sums({"": columns})[""]
    return _estimate(columns.sum(axis=0), drawn, int((columns[:, 1] != 0).sum()))


def _estimate(sums: np.ndarray, drawn: np.ndarray, n: int) -> BootstrapEstimate:
    with np.errstate(invalid="ignore", divide="ignore"):
        return BootstrapEstimate(float(sums[0] / sums[1]), n, drawn[:, 0] / drawn[:, 1])


def _write(
    folder: Path,
    pairs: Sequence[Pair],
    points: Sequence[float | None],
    judged: Mapping[int, JudgedPair],
    summary: Mapping[str, Any],
) -> None:
    """Write `pairs.jsonl`, a line a row with what was chosen in both orders, and `pairs.json`."""
    lines = []
    for number, (row, rival) in enumerate(pairs):
        record: dict[str, Any] = {
            "file": row.file,
            "id": row.id,
            "prediction": row.prediction,
            "against": rival.prediction,
        }
        record["points"] = points[number]
        if number in judged:
            record["orders"] = [one._asdict() for one in judged[number]]
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_atomically(folder / "pairs.jsonl", "".join(lines))
    write_atomically(folder / "pairs.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
