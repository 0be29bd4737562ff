"""Keeps answers on disk during generation: append-only, keyed by content, safe to kill.

Each process appends to a file of its own, one JSON object a line, a batch in one write. A process that starts later
reads all of them; a line torn by a kill is ignored. When every row has a record, the predictions folder is written
from them in the order of the data, so that its bytes do not depend on which process answered which row, or when.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llaso_common.atomic_write import write_atomically
from llaso_common.output_folder import refuse_existing

from .corpus import Question

logger = logging.getLogger(__name__)

RECORDS = "records"
GENERATION = "generation.json"


class Reply(NamedTuple):
    """A model's answer to one row; if it gave none, `error` is the reason."""

    prediction: str
    error: str | None = None
    time: dict[str, Any] | None = None
    """Seconds: `latency` from asking to the answer, `first_token` from asking to the first token; `tokens` generated.
    What is not known is None or left out. `generate` adds `seconds`, `warm_up` and `peak_memory`; see `speed`."""


class Records:
    """The append-only records below `out`.

    Args:
        out: the predictions folder.
        machine: what this process answers on, kept beside its records.
        overwrite: begin in a folder that holds something else.

    Raises:
        ValueError: the folder holds something, and no records.
    """

    def __init__(self, out: Path, machine: dict[str, Any] | None = None, overwrite: bool = False):
        if not (out / RECORDS).is_dir():
            refuse_existing(out, overwrite)
        self.machine = machine
        self.folder = out / RECORDS
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sink: int | None = None

    def read(self, keep_errors: bool = True) -> dict[str, Reply]:
        """Return all answers so far by key. Among records of one key a success wins over an error, then the first."""
        answers: dict[str, Reply] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was torn by a kill
                record = json.loads(line)
                time = record.get("time")
                run = path.stem.removeprefix("part-")
                answer = Reply(record["prediction"], record["error"], None if time is None else time | {"run": run})
                held = answers.get(record["key"])
                if held is None or (held.error is not None and answer.error is None):
                    answers[record["key"]] = answer
        if keep_errors:
            return answers
        return {key: answer for key, answer in answers.items() if answer.error is None}

    def append(self, answers: Iterable[tuple[str, str, Reply]]) -> None:
        """Write a batch of (key, row id, answer): all its lines at once, handed to the system before this returns."""
        if self._sink is None:
            self._sink = self._open_part()
        lines = [json.dumps({"key": key, "id": row_id} | answer._asdict()) for key, row_id, answer in answers]
        remaining = memoryview("".join(line + "\n" for line in lines).encode("ascii"))
        while remaining:
            remaining = remaining[os.write(self._sink, remaining) :]

    def _open_part(self) -> int:
        """Open a new file for this process: never one that a kill may have left with a torn line."""
        number = len(list(self.folder.glob("part-*.jsonl")))
        while True:
            try:
                path = self.folder / f"part-{number:05d}.jsonl"
                sink = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            except FileExistsError:
                number += 1
                continue
            if self.machine is not None:
                write_atomically(self.folder / f"run-{number:05d}.json", json.dumps(self.machine, indent=1) + "\n")
            return sink

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return what each process answered on, by the number of its file."""
        files = sorted(self.folder.glob("run-*.json"))
        return {path.stem.removeprefix("run-"): json.loads(path.read_text(encoding="utf-8")) for path in files}

    def close(self) -> None:
        """Close this process's file."""
        if self._sink is not None:
            os.close(self._sink)
            self._sink = None


def prediction_record(row: Question, answer: Reply) -> dict[str, Any]:
    """Return the line of the predictions folder for one row."""
    return {
        "id": row.id,
        "file": row.file,
        "task": row.task,
        "category": row.category,
        "modality": row.modality,
        "source": row.source,
        "instruction": row.instruction,
        "prediction": answer.prediction,
        "reference": row.reference,
        "choices": list(row.choices),
        "error": answer.error,
        "cluster": row.cluster,
        "duration": row.duration,
        "attributes": row.attributes,
    } | ({"repeat_of": row.repeat_of} if row.repeat_of is not None else {})


def write_predictions(
    out: Path, rows: Sequence[Question], answers: Sequence[Reply], generation: dict[str, Any]
) -> None:
    """Write the predictions folder: one `<file>.jsonl` per file group in data order, then `generation.json`.

    Each file is replaced in one step. Files of an earlier run over other data, as its `generation.json` names
    them, are removed, so that the folder never mixes two runs.
    """
    groups: dict[str, list[str]] = {}
    for row, answer in zip(rows, answers, strict=True):
        line = json.dumps(prediction_record(row, answer), ensure_ascii=False)
        groups.setdefault(row.file, []).append(line)
    for file, lines in groups.items():
        write_atomically(out / f"{file}.jsonl", "".join(line + "\n" for line in lines))
    earlier = out / GENERATION
    if earlier.exists():
        for file in json.loads(earlier.read_text(encoding="utf-8"))["files"]:
            if file not in groups:
                (out / f"{file}.jsonl").unlink(missing_ok=True)
    generation = {**generation, "files": {file: len(lines) for file, lines in sorted(groups.items())}}
    write_atomically(earlier, json.dumps(generation, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
