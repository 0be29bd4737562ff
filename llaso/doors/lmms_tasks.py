"""LLaSO's tasks for lmms-eval: writes a folder of tasks over a corpus, and holds the functions that they name.

`llaso eval lmms-tasks CORPUS --out FOLDER`, then `lmms_eval --include_path FOLDER --tasks llaso_asr ...`. One task a
task code; the metrics are those of `llaso eval score` under strict, computed by the same code over all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval_suite.corpus import EvalCorpus
from eval_suite.metrics import METRICS
from eval_suite.readers import task_of
from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, read_audio
from llaso_common.output_folder import refuse_existing

from .answers import facts_of, facts_of_record, strict_metrics

MAX_TOKENS = 256


def write_lmms_tasks(
    data: str, out: Path, *, config: str | None = None, split: str = "test", overwrite: bool = False
) -> list[str]:
    """Write a folder of lmms-eval tasks.

    Args:
        data: a corpus folder or Hub id, in the row schema.
        out: the folder to write; it must be absent or empty.
        config: of the data; its default one by default.
        split: of the data.
        overwrite: write to a folder that is not empty. Tasks that an earlier call wrote there are removed.

    Returns:
        The names of the tasks.

    Raises:
        ValueError: no such data, or the folder holds something.
    """
    import yaml

    refuse_existing(out, overwrite)
    rows: dict[str, list[dict[str, Any]]] = {}
    for question in EvalCorpus(data, config, split).rows:
        facts = facts_of(question)
        rows.setdefault(facts["task"], []).append(facts)
    for earlier in out.glob("llaso_*.yaml"):
        earlier.unlink()
    path = str(Path(data).resolve()) if Path(data).is_dir() else data
    functions = ["from llaso.doors.lmms_tasks import aggregation, clips, instruction, of_task, results_for", ""]
    used: set[str] = set()
    names = []
    for code, asked in sorted(rows.items()):
        (values,) = strict_metrics((facts, facts["reference"]) for facts in asked).values()
        used |= set(values)
        name = f"llaso_{code.lower()}"
        functions.append(f'only_{code.lower()} = of_task("{code}")')
        functions.append(f"results_{code.lower()} = results_for({list(values)})")
        settings = {
            "task": name,
            "dataset_path": path,
            "test_split": split,
            "output_type": "generate_until",
            "doc_to_target": "target",
            "generation_kwargs": {"max_new_tokens": MAX_TOKENS, "temperature": 0, "do_sample": False},
            "metadata": [{"version": 1}],
        } | ({"dataset_name": config} if config else {})
        lines = [yaml.safe_dump(settings, sort_keys=False).rstrip()]
        lines += [
            f"process_docs: !function utils.only_{code.lower()}",
            "doc_to_visual: !function utils.clips",
            "doc_to_text: !function utils.instruction",
            f"process_results: !function utils.results_{code.lower()}",
            "metric_list:",
        ]
        for metric in values:
            lines += [
                f"- metric: {metric}",
                f"  aggregation: !function utils.{metric}",
                f"  higher_is_better: {str(METRICS[metric].better == 'higher').lower()}",
            ]
        write_atomically(out / f"{name}.yaml", "\n".join(lines) + "\n")
        names.append(name)
    functions += [f'{metric} = aggregation("{metric}")' for metric in sorted(used)]
    write_atomically(out / "utils.py", "\n".join(functions) + "\n")
    return names


# What the tasks name -------------------------------------------------------------------------------------------


def of_task(code: str) -> Callable[[Any], Any]:
    """Return the function that keeps the rows of a task."""
    return lambda docs: docs.filter(
        lambda task, choices: task_of(task, choices or ()) == code, input_columns=["task", "choices"]
    )


def clips(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the clips of a row as lmms-eval's audio models take them."""
    return [{"array": read_audio(clip, name=doc["id"]), "sampling_rate": SAMPLE_RATE} for clip in doc["audio"]]


def instruction(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """Return what the user wrote, without the audio."""
    return facts_of_record(doc)["instruction"]


def results_for(metrics: Sequence[str]) -> Callable[[dict[str, Any], Sequence[str]], dict[str, Any]]:
    """Return the function that gives a row's facts and its answer to every metric; metrics see all rows at once."""
    return lambda doc, results: dict.fromkeys(metrics, (facts_of_record(doc), results[0] if results else ""))


def aggregation(metric: str) -> Callable[[Sequence[Any]], float]:
    """Return the function that computes a metric over all rows of a task."""

    def over_rows(answers: Sequence[Any]) -> float:
        (values,) = strict_metrics(answers).values()
        return values[metric]

    return over_rows
