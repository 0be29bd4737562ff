"""The `eval.yaml` that makes a data set a benchmark on the Hub, for models' `.eval_results` to point at its tasks."""

from __future__ import annotations

from typing import Any

from eval_suite.corpus import EvalCorpus
from eval_suite.readers import task_of
from eval_suite.task_metrics import TASKS

FRAMEWORK = "inspect-ai"
"""One of the evaluation frameworks that the Hub knows."""


def hub_benchmark(data: str, name: str, *, config: str | None = None, split: str = "test") -> dict[str, Any]:
    """Return the content of `eval.yaml`.

    Its task ids are the task codes, as in the `.eval_results` that `llaso publish` writes. Format:
    https://huggingface.co/docs/hub/eval-results.

    Args:
        data: a corpus folder or Hub id, in the row schema.
        name: of the benchmark, as its page shows it.
        config: of the data; its default one by default.
        split: of the data.

    Raises:
        ValueError: no such data.
    """
    counts: dict[str, int] = {}
    for row in EvalCorpus(data, config, split).rows:
        code = task_of(row.task, row.choices)
        counts[code] = counts.get(code, 0) + 1
    asked = [code for code in TASKS if code in counts]
    told = ", ".join(f"{TASKS[code].name} ({code}, {counts[code]} rows)" for code in asked)
    return {
        "name": name,
        "description": f"Speech and language tasks with audio, scored by LLaSO's strict protocol: {told}.",
        "evaluation_framework": FRAMEWORK,
        "tasks": [{"id": code, "config": config or "default", "split": split} for code in asked],
    }
