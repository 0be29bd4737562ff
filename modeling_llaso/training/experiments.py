"""The paper's experiments at any scale: variations of the two stages, seeds, scores, and a table and plot of each.

Comes in: the folder of a quickstart (corpora, backbones), or any of the same layout. Every run is an ordinary
`train`, every score comes from `llaso eval` in a process of its own, everything finished is skipped when the command
is given again. Goes out: `results.json`, `table.md` and `plot.png` for each experiment.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .train import train
from .watch import Report

SPOKEN = "ASR"
UNSEEN_TASKS = ("IP", "SCR")
"""Held out of training by default, where the corpus has them."""
GATE_SHARES = (0.1, 0.3, 1.0)
"""Of Stage 1's usual length, tried against its gate."""
FEW_TASKS = 3

Scores = dict[str, Any]
Evaluate = Callable[[Path, Path, Path], Scores]
"""From a model's folder, a corpus and an output folder to the content of scores.json."""


@dataclass(frozen=True)
class Inputs:
    """What the experiments train on and with: the layout that `llaso quickstart` leaves."""

    folder: Path

    @property
    def align(self) -> Path:
        return self.folder / "llaso-align"

    @property
    def instruct(self) -> Path:
        return self.folder / "llaso-instruct"

    @property
    def evaluation(self) -> Path:
        return self.folder / "llaso-eval"

    def stage1(self) -> tuple[str, ...]:
        """Overrides that point Stage 1's recipe here."""
        return (
            f"model.encoder={self.folder / 'backbones' / 'encoder'}",
            f"model.llm={self.folder / 'backbones' / 'llm'}",
            f"data.path={self.align}",
        )

    def tasks(self) -> list[str]:
        """Tasks of the instruction corpus, most rows first."""
        column = datasets.load_dataset(str(self.instruct), split="train").select_columns("task")["task"]
        counts = {task: 0 for task in column}
        for task in column:
            counts[task] += 1
        return sorted(counts, key=lambda task: (-counts[task], task))


@dataclass(frozen=True)
class Variation:
    """One way to train: overrides of the two recipes.

    Attributes:
        name: as the table has it.
        stage1_share: of Stage 1's usual steps.
        stage2: overrides of Stage 2.
    """

    name: str
    stage1_share: float = 1.0
    stage2: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A claim to test.

    Attributes:
        name: of the command and the folder.
        claim: what the paper says.
        variations: makes them from the corpus's tasks and those to hold out; the first is the reference.
        columns: tasks that matter, from the same; empty means all.
    """

    name: str
    claim: str
    variations: Callable[[list[str], list[str]], list[Variation]]
    columns: Callable[[list[str], list[str]], list[str]] = lambda tasks, unseen: tasks


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(names) + "]"


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "gate",
            "A word error rate under .10 after Stage 1 is what makes Stage 2 worth starting.",
            lambda tasks, unseen: [
                Variation(f"Stage 1 at {share:.0%}", stage1_share=share) for share in reversed(GATE_SHARES)
            ],
        ),
        Experiment(
            "encoder",
            "With the encoder unfrozen in Stage 2, ASR gets worse (WER .08 to .14) and question answering a little "
            "better.",
            lambda tasks, unseen: [
                Variation("encoder frozen"),
                Variation(
                    "encoder unfrozen", stage2=("train=[encoder, projector, llm]", "compute.encoder_cache_gb=0")
                ),
            ],
        ),
        Experiment(
            "unseen",
            "Tasks and formats left out of training stay hard, and the model abstains on them.",
            lambda tasks, unseen: [
                Variation("all tasks"),
                Variation(f"without {' and '.join(unseen)}", stage2=(f"data.without_tasks={_list(unseen)}",)),
                Variation("without pure audio", stage2=("data.without_modalities=[audio]",)),
            ],
        ),
        Experiment(
            "more-tasks",
            "More tasks in training give higher scores and fewer abstentions on each of them.",
            lambda tasks, unseen: [
                Variation("all tasks"),
                Variation(f"{FEW_TASKS} tasks", stage2=(f"data.tasks={_list(tasks[:FEW_TASKS])}",)),
            ],
            lambda tasks, unseen: tasks[:FEW_TASKS],
        ),
    )
}


def run_experiment(
    name: str,
    inputs: Inputs,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    unseen: Sequence[str] = UNSEEN_TASKS,
    recipes: tuple[str, str] = ("quickstart_stage1", "quickstart_stage2"),
    overrides: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    report: Report = lambda line: None,
) -> Path:
    """Train and score every variation with every seed, then write the table and the plot.

    Every variation takes as many optimizer steps in Stage 2 as the reference does, however many rows it sees.

    Args:
        name: a key of `EXPERIMENTS`.
        inputs: corpora and backbones.
        out: models go to `out/runs`, shared between experiments; results to `out/<name>`.
        seeds: one run of each variation a seed.
        unseen: tasks that the experiment `unseen` holds out.
        recipes: of Stage 1 and Stage 2.
        overrides: of both recipes, for all variations.
        evaluate: scores a model; `llaso eval` by default.
        report: takes progress lines.

    Returns:
        The folder of the results.

    Raises:
        ValueError: no such experiment, or the corpus has none of the tasks to hold out.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    tasks = inputs.tasks()
    held_out = [task for task in unseen if task in tasks]
    if not held_out:
        raise ValueError(f"{inputs.instruct} has none of the tasks {', '.join(unseen)}; it has {', '.join(tasks)}")
    runs = _Runs(inputs, out / "runs", recipes, tuple(overrides), evaluate or evaluate_by_command, report)
    records = []
    for seed in seeds:
        steps = 0
        for variation in experiment.variations(tasks, held_out):
            report(f"experiment {name}: {variation.name}, seed {seed}")
            record = runs.run(variation, seed, steps)
            steps = steps or record["steps"]
            records.append(record)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    columns = experiment.columns(tasks, held_out)
    (folder / "table.md").write_text(table(experiment, records, columns), encoding="utf-8")
    plot(experiment, records, columns, folder / "plot.png")
    return folder


@dataclass(frozen=True)
class _Runs:
    """Trained and scored models, each made once."""

    inputs: Inputs
    folder: Path
    recipes: tuple[str, str]
    overrides: tuple[str, ...]
    evaluate: Evaluate
    report: Report

    def run(self, variation: Variation, seed: int, steps: int) -> dict[str, Any]:
        """One variation with one seed: what its two stages and its scores came to."""
        cache = f"compute.encoder_cache={self.folder / 'encoder-cache'}"
        common = (cache, *self.overrides, f"seed={seed}")
        whole = self._stage(0, (*self.inputs.stage1(), *common)) if variation.stage1_share < 1 else None
        shorter = (f"optimizer.max_steps={max(1, round(whole.steps * variation.stage1_share))}",) if whole else ()
        first = self._stage(0, (*self.inputs.stage1(), *common, *shorter))
        equal = (f"optimizer.max_steps={steps}",) if steps else ()
        start = (f"model.checkpoint={first.out}", f"data.path={self.inputs.instruct}")
        second = self._stage(1, (*start, *common, *variation.stage2, *equal))
        scores = self.evaluate(Path(second.out), self.inputs.evaluation, Path(second.out) / "evaluation")
        return {
            "variation": variation.name,
            "seed": seed,
            "steps": second.steps,
            "stage1_wer": first.wer,
            "stage2_wer": second.wer,
            "tasks": {
                task: {
                    "metric": entry["primary"]["metric"] if entry["primary"] else None,
                    "value": entry["primary"]["value"] if entry["primary"] else None,
                    "coverage": entry["coverage"],
                }
                for task, entry in scores["tasks"].items()
            },
            "coverage_by_format": {form: entry["coverage"] for form, entry in scores["modalities"].items()},
        }

    def _stage(self, stage: int, overrides: tuple[str, ...]) -> Any:
        """A stage in a folder named after what it is told, so that equal runs of several experiments are one."""
        digest = hashlib.sha256("\n".join((self.recipes[stage], *overrides)).encode()).hexdigest()[:12]
        out = self.folder / f"stage{stage + 1}-{digest}"
        return train(self.recipes[stage], (*overrides, f"out={out}"), report=lambda line: self.report(f"    {line}"))


def evaluate_by_command(model: Path, corpus: Path, out: Path) -> Scores:
    """Score a model with `llaso eval`, in processes of its own; what is there already is not done again.

    Raises:
        RuntimeError: a command failed; its output is in the message.
    """
    file = out / "scores.json"
    if not file.exists():
        for step in (
            ("generate", "--model", str(model), "--data", str(corpus), "--out", str(out / "predictions")),
            ("score", str(out / "predictions"), "--no-intervals", "--out", str(file)),
        ):
            command = [sys.executable, "-m", "modeling_llaso.cli", "eval", *step]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return json.loads(file.read_text(encoding="utf-8"))


def table(experiment: Experiment, records: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """Markdown: the claim, then a line for each variation, mean ± spread over the seeds."""
    shown = [task for task in tasks if any(_metric(record, task) for record in records)]
    metric = {task: next(_metric(r, task) for r in records if _metric(r, task)) for task in shown}
    head = ["trained", "Stage 1 WER", *(f"{task} {metric[task]}" for task in shown), "answered"]
    lines = [f"### {experiment.name}", "", f"Claim: {experiment.claim}", "", _line(head), _line(["---"] * len(head))]
    for name in dict.fromkeys(record["variation"] for record in records):
        mine = [record for record in records if record["variation"] == name]
        cells = [name, _spread([record["stage1_wer"] for record in mine])]
        cells += [_spread([record["tasks"].get(task, {}).get("value") for record in mine]) for task in shown]
        cells.append(_spread([_answered(record, shown) for record in mine]))
        lines.append(_line(cells))
    seeds = sorted({record["seed"] for record in records})
    return "\n".join([*lines, "", f"Mean ± standard deviation over {len(seeds)} seeds.", ""])


def plot(experiment: Experiment, records: Sequence[dict[str, Any]], tasks: Sequence[str], path: Path) -> None:
    """Every seed of every variation as a dot, task by task."""
    from matplotlib.figure import Figure

    shown = [task for task in tasks if any(_metric(record, task) for record in records)]
    names = list(dict.fromkeys(record["variation"] for record in records))
    figure = Figure(figsize=(max(6.0, 1.2 * len(shown) + 2), 4), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        places, values = [], []
        for place, task in enumerate(shown):
            for record in records:
                value = record["tasks"].get(task, {}).get("value")
                if record["variation"] == name and value is not None:
                    places.append(place + (number - (len(names) - 1) / 2) * 0.18)
                    values.append(value)
        axes.scatter(places, values, label=name, s=22, color=f"C{number}")
    labels = [f"{task}\n{next(_metric(r, task) for r in records if _metric(r, task))}" for task in shown]
    axes.set_xticks(range(len(shown)), labels)
    axes.set_title(experiment.name)
    axes.grid(axis="y", color="0.9")
    axes.legend()
    figure.savefig(path, dpi=120)


def _metric(record: dict[str, Any], task: str) -> str | None:
    return record["tasks"].get(task, {}).get("metric")


def _answered(record: dict[str, Any], tasks: Sequence[str]) -> float | None:
    """Share of the questions that were answered, over the tasks shown."""
    shares = [record["tasks"][task]["coverage"] for task in tasks if task in record["tasks"]]
    return statistics.mean(shares) if shares else None


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
