"""Builds a panel file from folders of answers, or from a table of values if a system's answers are not at hand.

Values are measured here or copied by this command from the table, never typed; the provenance says for every system
which, with the digest of what it was made from. A system in both is measured and must agree with the table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .metrics import ranking_metrics
from .panel import SHIPPED, parse_panel
from .readers import SystemAnswers, digest, read, released_files
from .score import ScoredTask, group_tasks, measure, read_rows
from .task_metrics import MODALITIES, PANEL_TASKS, TASKS, YEARS

AGREEMENT = 1e-9
"""How far a measured value may lie from a table's."""

FORMAT_NAMES = {"text_instr+audio_input": "text_audio", "audio_instr+text_input": "audio_text", "pure_audio": "audio"}
"""How tables of values spell the modality formats, after the task: "AQA_pure_audio"."""

Values = dict[str, float]
RELEASED = "LLaSO-Eval as released"


def _values(groups: Mapping[str, ScoredTask], metrics: Mapping[str, str]) -> Values:
    """Return the ranking metrics of a system's tasks that are defined."""
    values = {}
    for task, metric in metrics.items():
        estimate = groups[task].estimates.get(metric) if task in groups else None
        if estimate is not None and math.isfinite(estimate.value):
            values[task] = estimate.value
    return values


def _only_format() -> dict[str, str]:
    """Return the tasks that the released benchmark asks in one modality format only."""
    formats: dict[str, set[str]] = {}
    for facts in released_files().values():
        formats.setdefault(facts["task"], set()).add(facts["modality"])
    return {task: next(iter(found)) for task, found in formats.items() if len(found) == 1}


def _answers_digest(answers: SystemAnswers) -> str:
    """Return one digest over all files of a system."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(answers.digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_table(path: Path, metrics: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return a table of values, system -> column -> number or null, as the systems of a panel.

    Columns are a task ("SGC"), a task and its ranking metric ("ASR_WER"), or a task and a modality format
    ("AQA_pure_audio"); others are left alone.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from error
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise ValueError(f"{path}: expected an object of systems, each an object of values by task")
    only = _only_format()
    systems = {}
    for system, row in table.items():
        tasks: Values = {}
        modalities: dict[str, Values] = {}
        for column, value in row.items():
            task, _, rest = column.partition("_")
            if value is None or task not in metrics:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{path}: {system}, {column}: {value!r} is not a number")
            if rest == "" or rest.lower() == metrics[task]:
                tasks[task] = value
                if task in only:
                    modalities.setdefault(only[task], {})[task] = value
            elif rest in FORMAT_NAMES:
                modalities.setdefault(FORMAT_NAMES[rest], {})[task] = value
        systems[system] = {"tasks": tasks, "modalities": modalities}
    return systems


def _check_agreement(system: str, measured: Mapping[str, Any], listed: Mapping[str, Any], table: Path) -> None:
    for task, value in listed["tasks"].items():
        found = measured["tasks"].get(task)
        if found is None or abs(found - value) > AGREEMENT:
            raise ValueError(f"{system}, {task}: measured {found}, but {table} says {value}")


def _panel_tasks(systems: Sequence[SystemAnswers]) -> list[str]:
    """Return the tasks that a panel may hold: the paper's, and those that these systems' data define."""
    answered = {row.task for answers in systems for rows in answers.files.values() for row in rows[:1]}
    return [task for task in TASKS if task != YEARS and (task in PANEL_TASKS or task in answered)]


def _benchmark(systems: Sequence[SystemAnswers]) -> str:
    """Return what the systems answered: the released benchmark, or the data that their answers name."""
    data = {answers.generation["data"]["path"] for answers in systems if answers.generation}
    own = any(file not in released_files() for answers in systems for file in answers.files)
    return ", ".join(sorted(data)) or "data of one's own" if own else RELEASED


def build_panel(
    folders: Sequence[Path | str],
    *,
    protocol: str,
    name: str,
    version: int,
    table: Path | str | None = None,
    table_about: str = "",
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the content of a panel file.

    Args:
        folders: of answers, one a system.
        protocol: to measure them under.
        name: of the panel.
        version: of the panel; a panel whose systems or values change is a new version.
        table: a JSON table of values for systems whose answers are not at hand (see `_read_table`).
        table_about: what the table is, for the provenance.
        exclude: systems of the table to leave out.

    Raises:
        ValueError: fewer than two systems, a repeated name, or a table that disagrees with the answers.
    """
    if protocol not in SHIPPED:
        raise ValueError(f"unknown protocol {protocol!r}: choose strict or paper")
    systems: dict[str, dict[str, Any]] = {}
    provenance: dict[str, dict[str, Any]] = {}
    read_folders = [(folder, read(folder)) for folder in folders]
    metrics = {
        task: ranking_metrics(TASKS[task].kind, protocol)[0].name
        for task in _panel_tasks([answers for _, answers in read_folders])
    }
    for folder, answers in read_folders:
        if answers.system in systems:
            raise ValueError(f"{folder}: a system called {answers.system} was already read")
        measured = measure({file: read_rows(rows, protocol) for file, rows in answers.files.items()}, protocol)
        by_modality = {modality: _values(group_tasks(measured, modality), metrics) for modality in MODALITIES}
        systems[answers.system] = {
            "tasks": _values(group_tasks(measured), metrics),
            "modalities": {modality: values for modality, values in by_modality.items() if values},
        }
        provenance[answers.system] = {
            "from": "answers",
            "files": len(answers.files),
            "rows": sum(len(rows) for rows in answers.files.values()),
            "sha256": _answers_digest(answers),
        }
    tables: dict[str, dict[str, str]] = {}
    if table is not None:
        table = Path(table)
        listed = {system: row for system, row in _read_table(table, metrics).items() if system not in exclude}
        for system, row in listed.items():
            if system in systems:
                _check_agreement(system, systems[system], row, table)
                provenance[system]["agrees_with"] = table.name
            else:
                systems[system] = row
                provenance[system] = {"from": "values", "table": table.name}
        tables[table.name] = {"sha256": digest(table), "about": table_about}
    if len(systems) < 2:
        raise ValueError("a panel needs at least two systems")
    held = {task for row in systems.values() for task in row["tasks"]}
    for system, row in systems.items():
        provenance[system]["missing"] = [task for task in metrics if task in held and task not in row["tasks"]]
    content = {
        "name": name,
        "version": version,
        "protocol": protocol,
        "provenance": {
            "command": "llaso eval panel build",
            "benchmark": _benchmark([answers for _, answers in read_folders]),
            "tables": tables,
            "systems": dict(sorted(provenance.items())),
        },
        "metrics": metrics,
        "systems": dict(sorted(systems.items())),
    }
    parse_panel(content, "the new panel")
    return content
