"""Turns rows into facts as plain data, and answered rows into strict metrics, for every program of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eval_suite.corpus import Question, file_name
from eval_suite.readers import AnsweredRow, task_of
from eval_suite.score import group_tasks, measure, read_rows
from eval_suite.scored_rows import ScoredRow
from llaso_common.schema import TASK_DEFINITION
from llaso_common.tasks import TASKS, defined_tasks

FACTS = ("file", "id", "task", "modality", "source", "reference", "choices", "cluster", "instruction")
"""Names of the facts about a row that scoring needs in addition to the answer."""


def facts_of(question: Question) -> dict[str, Any]:
    """Return the facts of a question as JSON values."""
    facts = {name: getattr(question, name) for name in FACTS}
    return facts | {"choices": list(question.choices), "task": task_of(question.task, question.choices)}


def facts_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a row as it lies in a corpus.

    Args:
        record: with the columns of the row schema.
    """
    TASKS.declare(defined_tasks([record.get(TASK_DEFINITION)], record["id"]), record["id"])
    said = [message for message in record["messages"] if message["role"] == "user"]
    texts = [part["text"] for message in said for part in message["content"] if part["type"] == "text"]
    return {
        "file": file_name(dict(record)),
        "id": record["id"],
        "task": task_of(record["task"], record["choices"] or ()),
        "modality": record["modality"],
        "source": record["source"],
        "reference": record["target"],
        "choices": list(record["choices"] or ()),
        "cluster": record["id"],
        "instruction": "\n".join(text for text in texts if text and text.strip()),
    }


def scored_row(facts: Mapping[str, Any], answer: str) -> ScoredRow:
    """Read one answer under strict.

    Args:
        facts: of the row, see `facts_of`.
        answer: the model's text.
    """
    known = {name: facts[name] for name in FACTS} | {"choices": tuple(facts["choices"])}
    row = AnsweredRow(**known, where=facts["id"], prediction=answer, error=None)
    return read_rows([row], "strict")[0]


def strict_metrics(answers: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, dict[str, float]]:
    """Return task code -> metric -> value, as `llaso eval score` gives them.

    Args:
        answers: (facts of a row, the model's text).
    """
    files: dict[str, list[ScoredRow]] = {}
    for facts, answer in answers:
        one = scored_row(facts, answer)
        files.setdefault(one.row.file, []).append(one)
    return {
        task: {name: estimate.value for name, estimate in group.estimates.items()}
        for task, group in group_tasks(measure(files, "strict")).items()
    }
