"""Writes `history.jsonl`, one record a line while the run goes on, draws its curve, and sums up its result.

A record of kind `step` holds loss, learning rate, tokens, the digest of the rows it saw, the seconds since the record
before, and the useful FLOPs with their rate and its share of the chips' peak; one of kind `held_out` the word error
rate; one of kind `change` the settings that a resumed run changed. A resumed run cuts the file back to its checkpoint,
so that its file ends up equal to that of an undisturbed run, except for wall times and rates.
"""

from __future__ import annotations

import itertools
import json
import logging
import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically

logger = logging.getLogger(__name__)

Record = dict[str, Any]
HISTORY, CURVE, RESULT = "history.jsonl", "loss.png", "training.json"
FIRST = 20
"""Steps whose losses count as the start of a run."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        out: the model and its processor.
        steps: optimizer steps.
        loss: mean loss of an answer token over the last tenth of the run.
        wer: word error rate on held-out rows after the last step; None if no row was held out.
        wer_words: reference words it was counted on.
        gate_wer: the recipe's limit; a word error rate below it passes.
        seconds: wall time of the last process that trained it; resumed runs do not add up.
        skipped: rows left out because they could not be read, counted each time they came up.
    """

    out: str
    steps: int
    loss: float
    wer: float | None
    wer_words: int
    gate_wer: float | None
    seconds: float
    skipped: int

    @property
    def gate_passed(self) -> bool | None:
        """Whether the word error rate is below the gate; None without a gate or held-out rows."""
        if self.gate_wer is None or self.wer is None:
            return None
        return self.wer < self.gate_wer


class History:
    """The records of one run: all of them on disk, the latest steps in memory.

    Args:
        path: of the file; it is read if it exists.
        start_step: records after this step are dropped, since the run goes on from there.
        write: whether this process writes; in a run of several, only the first does.
        recent: steps kept in memory.
    """

    def __init__(self, path: Path, start_step: int = 0, write: bool = True, recent: int = 1000) -> None:
        self.path, self.write = path, write
        self.recent: deque[Record] = deque(maxlen=recent)
        records = [record for record in read_history(path) if record["step"] <= start_step]
        self.recent.extend(record for record in records if record["kind"] == "step")
        self.first_losses = [record["loss"] for record in records if record["kind"] == "step"][:FIRST]
        self.evaluated = max((record["step"] for record in records if record["kind"] == "held_out"), default=0)
        if write:
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))

    def add(self, record: Record) -> None:
        """Keep one record; non-finite numbers are refused, as JSON has none.

        Raises:
            OSError: the file cannot be written; what it held before is kept.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        if record["kind"] == "step":
            self.recent.append(record)
            if len(self.first_losses) < FIRST:
                self.first_losses.append(record["loss"])
        elif record["kind"] == "held_out":
            self.evaluated = record["step"]
        if self.write:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                raise OSError(f"{self.path} could not be written: {error}. Earlier checkpoints are kept") from error

    def steps(self, last: int) -> list[Record]:
        """Return the records of the last few steps, oldest first."""
        return list(self.recent)[-last:]

    def median_loss(self, last: int) -> float:
        """Return the median loss of the last steps."""
        return statistics.median(record["loss"] for record in self.steps(last))

    def task_losses(self, last: int) -> dict[str, float]:
        """Return the mean loss of an answer token by task, over the last steps."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for record in self.steps(last):
            for task, (total, tokens) in record["tasks"].items():
                sums[task][0] += total
                sums[task][1] += tokens
        return {task: total / tokens for task, (total, tokens) in sorted(sums.items()) if tokens}


def read_history(path: Path) -> list[Record]:
    """Read the records of a file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    """Return the records of one kind."""
    return [record for record in records if record.get("kind") == kind]


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential running mean of values, of which each new one makes up a twentieth."""
    return list(itertools.accumulate(values, lambda mean, value: mean + 0.05 * (value - mean)))


def plot_history(records: list[Record], path: Path, title: str) -> None:
    """Draw loss, learning rate and word error rate over steps as a PNG."""
    from matplotlib.figure import Figure

    steps, held_out = of_kind(records, "step"), of_kind(records, "held_out")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="0.8", linewidth=1, label="loss of a step")
    smooth = running_mean([r["loss"] for r in steps])
    axes.plot([r["step"] for r in steps], smooth, color="C0", label="its running mean")
    axes.set(xlabel="step", ylabel="loss per answer token", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    if held_out:
        right = axes.twinx()
        right.plot([r["step"] for r in held_out], [r["wer"] for r in held_out], "o-", color="C1", markersize=4)
        right.set_ylabel("held-out word error rate", color="C1")
        right.set_ylim(0, max(1.0, *(r["wer"] for r in held_out)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_curve(out: Path, title: str) -> None:
    """Draw the history's curve; a failure is only logged, so that it does not hide how the run ended."""
    try:
        plot_history(read_history(out / HISTORY), out / CURVE, title)
    except (OSError, ImportError, ValueError) as error:  # no matplotlib, or a damaged history
        logger.warning("%s could not be drawn: %s", out / CURVE, error)


def result_of(out: str, steps: int, gate_wer: float | None, seconds: float) -> TrainResult:
    """Sum a finished run up from the history in its folder."""
    history = read_history(Path(out) / HISTORY)
    trained, held_out = of_kind(history, "step"), of_kind(history, "held_out")
    last = trained[-max(1, steps // 10) :]
    tokens = sum(record["answer_tokens"] for record in last)
    return TrainResult(
        out=out,
        steps=steps,
        loss=sum(record["loss"] * record["answer_tokens"] for record in last) / max(1, tokens),
        wer=held_out[-1]["wer"] if held_out else None,
        wer_words=held_out[-1]["words"] if held_out else 0,
        gate_wer=gate_wer,
        seconds=seconds,
        skipped=sum(record["skipped"] for record in trained),
    )
