"""A model's scores in the Hub's two formats: `.eval_results/*.yaml`, and `model-index` in the card's metadata.

The Hub shows the first on the model page and on the leaderboard of a benchmark dataset
(huggingface.co/docs/hub/eval-results); the second is the older format, which other sites read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .finished_run import FinishedRun


@dataclass(frozen=True)
class TaskResult:
    """Ranking score of a task.

    Attributes:
        task: task code.
        name: name of the task.
        closed: whether answers come from a closed set.
        metric: name of the metric, e.g. "wer".
        better: "lower" or "higher".
        value: the score.
        low: lower end of its confidence interval, if there is one.
        high: upper end likewise.
        baseline: score of a constant answer.
        verdict: "above" if the whole interval is better than the baseline; "below" if worse; otherwise "unclear", or
            "unknown" without an interval.
        n: number of rows.
    """

    task: str
    name: str
    closed: bool
    metric: str
    better: str
    value: float
    low: float | None
    high: float | None
    baseline: float | None
    verdict: str
    n: int

    @property
    def title(self) -> str:
        """Return task and metric, e.g. "SGC speaker gender, accuracy"."""
        return f"{self.task} {self.name}, {self.metric}"


def results_of(run: FinishedRun) -> list[TaskResult]:
    """Return the scores of a run's model in the order of the report, without tasks that have no score."""
    entries = ((task, task["scores"][run.system]) for task in run.report["tasks"])
    return [
        TaskResult(
            task=task["task"],
            name=task["name"],
            closed=task["closed"],
            metric=entry["metric"],
            better=entry["direction"],
            value=entry["value"],
            low=entry["low"],
            high=entry["high"],
            baseline=entry["baseline"],
            verdict=entry["verdict"],
            n=entry["n"],
        )
        for task, entry in entries
        if entry.get("value") is not None
    ]


def model_index(run: FinishedRun, name: str) -> list[dict[str, Any]]:
    """Return the `model-index` of a card, with one result for each task.

    Args:
        run: the run.
        name: name of the model.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    dataset = run.evaluation
    results = [
        eval_results_to_model_index(
            name,
            [
                EvalResult(
                    task_type=_task_type(result),
                    task_name=result.name,
                    dataset_type=dataset.repo_id or dataset.name,
                    dataset_name=dataset.name,
                    dataset_split="test",
                    dataset_revision=dataset.revision,
                    metric_type=result.metric,
                    metric_name=result.title,
                    metric_value=result.value,
                    metric_args={"protocol": run.report["protocol"]},
                )
            ],
        )[0]["results"][0]
        for result in results_of(run)
    ]
    return [{"name": name, "results": results}]


def eval_results(run: FinishedRun, source_url: str) -> list[dict[str, Any]]:
    """Return the entries of an `.eval_results/*.yaml` file; empty if the evaluation corpus is not on the Hub.

    Args:
        run: the run.
        source_url: URL of the full report.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if run.evaluation.repo_id is None:
        return []
    entries = [
        EvalResultEntry(
            dataset_id=run.evaluation.repo_id,
            dataset_revision=run.evaluation.revision,
            task_id=result.task,
            value=result.value,
            source_url=source_url,
            source_name="report.json",
            notes=", ".join(_notes(result, run)),
        )
        for result in results_of(run)
    ]
    return eval_result_entries_to_yaml(entries)


def _task_type(result: TaskResult) -> str:
    """Return the Hub's task type."""
    if result.task == "ASR":
        return "automatic-speech-recognition"
    return "audio-classification" if result.closed else "audio-text-to-text"


def confidence(run: FinishedRun) -> str:
    """Return the level of the confidence intervals, e.g. "95 %"."""
    return f"{run.report['systems'][run.system]['settings']['level']:.0%}".replace("%", " %")


def _notes(result: TaskResult, run: FinishedRun) -> Iterator[str]:
    yield f"{result.metric} ({result.better} is better)"
    yield f"protocol {run.report['protocol']}"
    if result.low is not None and result.high is not None:
        yield f"{confidence(run)} interval {result.low:.4g} to {result.high:.4g}"
    if result.baseline is not None:
        yield f"trivial baseline {result.baseline:.4g}"
    yield f"{result.n} rows"
