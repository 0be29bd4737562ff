"""Has a language model grade open answers from 1 to 5, and writes its judgements beside them.

The judge sees instruction, reference and answer as JSON data. What fails stays missing and is counted, never turned
into a score. How a judge is asked stands in `judge_models`, how its biases are measured in `judge_bias`, and how
answers are judged in pairs in `judge_pairs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llaso_common.atomic_write import write_atomically

from . import readers
from .answer_records import Reply
from .corpus import digest
from .judge_agreement import HIGHEST, LOWEST, agreement, read_ratings, row_clusters
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
from .task_metrics import TASKS

PROMPT = "judge_v1"
SCORE = {"score": {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}}
"""The field that a judge's reply has beside its ticket and its explanation, as a JSON schema."""


class Judgement(NamedTuple):
    """A score with its reason, or why there is none."""

    score: int | None
    explanation: str
    error: str | None = None


def score_question(prompt: JudgePrompt, judge: Judge, about: str, case: Mapping[str, str]) -> JudgeQuestion:
    """Return the question for the score of one answer; `case` has instruction, reference and answer."""
    return prompt.question(judge, about, case, SCORE)


def parse_reply(reply: str, ticket: str) -> Judgement:
    """Read a judge's reply, see `judge_models.reply_fields`.

    A score quoted from the answer, a repeated key, a number outside the scale or a wrong ticket makes the reply no
    judgement.
    """
    try:
        fields = reply_fields(reply, ticket, "score")
    except ValueError as error:
        return Judgement(None, "", str(error))
    score = fields["score"]
    if type(score) is not int or not LOWEST <= score <= HIGHEST:
        return Judgement(None, "", f"the score is no integer from {LOWEST} to {HIGHEST}")
    return Judgement(score, fields["explanation"])


def read_judgement(reply: Reply, key: str) -> Judgement:
    """Return what was judged in the reply to the question of a key."""
    return Judgement(None, "", reply.error) if reply.error is not None else parse_reply(reply.prediction, ticket(key))


# Judging a folder ----------------------------------------------------------------------------------------------


def judge(
    predictions: str | Path,
    judge_model: str | Judge,
    *,
    endpoint: str | None = None,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    max_calls: int | None = None,
    agree_with: str | Path | None = None,
    prompt: str = PROMPT,
    batch_size: int = 8,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge the open answers of a folder; scoring reads the judgements from `<predictions>/judge`.

    Args:
        predictions: a folder of answers, ours or released ones.
        judge_model: a local checkpoint or Hub id; with `endpoint`, the model's name there; or a `Judge`.
        endpoint: base address of an OpenAI-compatible chat server.
        out: the folder of the judgements; `<predictions>/judge` by default.
        tasks: which tasks; by default those whose answers only a judge can grade, or, with `agree_with`, every row
            that was judged there.
        limit: judge only so many rows, picked by a digest.
        max_calls: ask the judge at most so many questions in this run; a later run goes on.
        agree_with: judgements or people's ratings to compare with, see `judge_agreement.read_ratings`.
        prompt: name of the prompt file.
        batch_size: answers asked about at once.
        revision: of the judge.
        overwrite: write to a folder that holds something else.
        progress: show a bar with the time left.

    Returns:
        What `judge.json` holds: the judge and its prompt, how many rows, how many stayed missing and why, the tokens
        that the replies took; with `agree_with`, the agreement. `asked` is how many questions this run put.

    Raises:
        ValueError: no such prompt or task, or there is nothing to judge.
        ConnectionError: the endpoint cannot be reached.
    """
    answers = readers.read(predictions)
    words, earlier = JudgePrompt.load(prompt), read_ratings(Path(agree_with)) if agree_with else {}
    rows = _rows_to_judge(answers, tasks, earlier, limit)
    who = judge_named(judge_model, endpoint, revision)
    questions = {}
    for row in rows:
        case = {"instruction": row.instruction, "reference": row.reference, "answer": row.prediction or ""}
        questions[row.file, row.id] = score_question(words, who, row.id, case)
    folder = Path(out) if out else Path(predictions) / "judge"
    replies = ask_judge(
        who,
        [[question] for question in questions.values()],
        folder,
        batch_size=batch_size,
        max_calls=max_calls,
        overwrite=overwrite,
        progress=progress,
    )
    judged = {where: read_judgement(replies[one.key], one.key) for where, one in questions.items()}
    summary = made_by(who, words, replies, questions.values()) | {
        "rows": len(judged),
        "judged": sum(one.error is None for one in judged.values()),
        "missing": sum(one.error is not None for one in judged.values()),
        "reasons": missing_reasons(one.error for one in judged.values()),
        "predictions": answers.system,
    }
    if agree_with:
        new = {where: one.score for where, one in judged.items() if one.score is not None}
        summary["agreement"] = agreement(earlier, new, row_clusters(answers)) | {"with": str(agree_with)}
    _write(folder, rows, judged, summary)
    return summary | {"asked": replies.asked}


def _rows_to_judge(
    answers: readers.SystemAnswers,
    tasks: Sequence[str] | None,
    earlier: Mapping[tuple[str, str], int],
    limit: int | None,
) -> list[readers.AnsweredRow]:
    """Return the rows to judge, in file order. Rows whose generation failed have nothing to judge."""
    if unknown := [task for task in tasks or () if task not in TASKS]:
        raise ValueError(f"unknown task {', '.join(unknown)}; tasks are {', '.join(TASKS)}")

    def wanted(row: readers.AnsweredRow) -> bool:
        if tasks is not None and row.task not in tasks:
            return False
        if earlier:
            return (row.file, row.id) in earlier
        return tasks is not None or TASKS[row.task].kind == "open"

    rows = [row for file in answers.files.values() for row in file if row.error is None and wanted(row)]
    if not rows:
        raise ValueError(f"{answers.system}: no row to judge; name tasks with --tasks, e.g. --tasks AQA SCR")
    if limit is not None and limit < len(rows):
        picked = {id(row) for row in sorted(rows, key=lambda row: digest(row.file, row.id))[:limit]}
        rows = [row for row in rows if id(row) in picked]
    return rows


def _write(
    folder: Path, rows: Sequence[readers.AnsweredRow], judged: Mapping[Any, Judgement], summary: Mapping[str, Any]
) -> None:
    """Write one `<file>.jsonl` per file, in row order, and `judge.json`; remove files that an earlier run left."""
    files: dict[str, list[str]] = {}
    for row in rows:
        one = judged[row.file, row.id]
        record = {"id": row.id, "reference": row.reference, **one._asdict()}
        files.setdefault(row.file, []).append(json.dumps(record, ensure_ascii=False))
    earlier = folder / "judge.json"
    if earlier.exists():
        for file in json.loads(earlier.read_text(encoding="utf-8"))["files"]:
            if file not in files:
                (folder / f"{file}.jsonl").unlink(missing_ok=True)
    for file, lines in files.items():
        write_atomically(folder / f"{file}.jsonl", "".join(line + "\n" for line in lines))
    summary = {**summary, "files": {file: len(lines) for file, lines in files.items()}}
    write_atomically(earlier, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
