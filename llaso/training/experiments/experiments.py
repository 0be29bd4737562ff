"""Runs experiments at any scale: variations of the two stages, several seeds, scores.

The input is the folder of a quickstart or of `make real` (corpora, backbones), or one of the same layout. Every run is
an ordinary `train`, and `eval_suite` scores it in a process of its own. Finished runs are skipped when the command is
repeated, and several processes that run it at the same time share the runs. The output is the models and a
`results.json` for each experiment, which `experiment_report` turns into a table and a plot.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from llaso.progress import Report
from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import FolderBusy, alone_in, one_at_a_time

from ..recipe.recipe import DataChoice, Recipe, load_recipe
from ..rows.corpora import open_corpus
from ..rows.training_rows import count_steps, plan_of
from ..run.history import RESULT, TrainResult
from ..run.resume import RECIPE, decisive, recipe_of
from ..run.train import train

UNSEEN_TASKS = ("IP", "SCR")
"""Tasks held out of training by default, if the corpus has them."""
GATE_SHARES = (0.1, 0.3, 1.0)
"""Shares of Stage 1's usual length that the experiment `gate` tries."""
FEW_TASKS = 3
LESS_SPEECH = {"half": ("data.speech_share=0.5",), "a quarter": ("data.speech_share=0.25",)}
"""What the experiment `hours` tries beside all of the speech."""
MERGES = (1000, 500, 250)
"""Values of optimizer.ctc_merges that the experiment `pieces` tries beside whole tokens."""
ENCODER_LEARNS = ("train=[encoder, projector, llm]", "compute.encoder_cache_gb=0")
"""Settings of a Stage 2 that trains the encoder as well."""
LOOK_AGAIN = 2.0
"""Seconds to wait before trying again to start runs whose folders other processes have locked."""
ROWS_AT_ONCE, ANSWER_TOKENS = 32, 64
"""Rows answered together, and tokens of an answer at most, as in the quickstart."""
TRANSCRIPT_TOKENS = 256
"""Tokens at most of a transcript before an answer."""

RESULTS = "results.json"

Scores = dict[str, Any]
Evaluate = Callable[[Path, Path, Path, int], Scores]
"""From a model's folder, a corpus, an output folder and a number of rows (0: all) to the content of scores.json."""


@dataclass(frozen=True)
class Inputs:
    """The corpora and backbones that the experiments read, in the folder layout that `llaso quickstart` writes.

    Attributes:
        folder: holds the corpora, and the backbones unless others are named.
        encoder, llm: folders or Hub ids; empty: those in `folder / "backbones"`.
        recipes: of Stage 1 and Stage 2.
    """

    folder: Path
    encoder: str = ""
    llm: str = ""
    recipes: tuple[str, str] = ("quickstart_stage1", "quickstart_stage2")

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
        """Return overrides that point Stage 1's recipe to this folder."""
        return (
            _named("model.encoder", self.encoder or self.folder / "backbones" / "encoder"),
            _named("model.llm", self.llm or self.folder / "backbones" / "llm"),
            _named("data.path", self.align),
        )

    def tasks(self) -> list[str]:
        """Return the tasks of the instruction corpus, most rows first."""
        counts = open_corpus(DataChoice(path=str(self.instruct))).tasks()
        return sorted(counts, key=lambda task: (-counts[task], task))


@dataclass(frozen=True)
class Variation:
    """One way to train: overrides of the two recipes.

    Attributes:
        name: as the table has it.
        stage1_share: of Stage 1's usual steps.
        stage1, stage2: overrides of each stage.
    """

    name: str
    stage1_share: float = 1.0
    stage1: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()


@dataclass(frozen=True)
class Basis:
    """What variations are made from.

    Attributes:
        tasks: of the instruction corpus, most rows first.
        unseen: those of them to hold out.
        stage2_rate: learning rate of Stage 2.
        corpora: folders of instruction corpora to compare, by name.
    """

    tasks: list[str]
    unseen: list[str]
    stage2_rate: float
    corpora: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A claim to test.

    Attributes:
        name: of the command and the folder.
        claim: what the paper says, or what is asked.
        variations: returns them; the first is the reference.
        shows: returns whether to show a score, by its name (`AQA`; `AQA (audio)` and `skill (audio)` of one format)
            and the tasks held out.
    """

    name: str
    claim: str
    variations: Callable[[Basis], list[Variation]]
    shows: Callable[[str, list[str]], bool] = lambda name, unseen: "(" not in name


def _named(setting: str, place: Path | str) -> str:
    """Return an override that names a folder or a Hub id, in quotes, since YAML reads more into `a #b` or `1e3`."""
    return f"{setting}={json.dumps(str(place), ensure_ascii=False)}"


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(names) + "]"


def _hundredth(basis: Basis) -> str:
    return f"optimizer.encoder.learning_rate={basis.stage2_rate / 100:g}"


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "gate",
            "A word error rate under .10 after Stage 1 is what makes Stage 2 worth starting.",
            lambda basis: [
                Variation(f"Stage 1 at {share:.0%}", stage1_share=share) for share in reversed(GATE_SHARES)
            ],
        ),
        Experiment(
            "encoder",
            "With the encoder unfrozen in Stage 2, ASR gets worse (WER .08 to .14) and question answering a little "
            "better.",
            lambda basis: [
                Variation("encoder frozen"),
                Variation("encoder unfrozen", stage2=ENCODER_LEARNS),
            ],
        ),
        Experiment(
            "unfreeze",
            "An encoder that learns in Stage 2 gently, in adapters or in its last layers, tells speakers apart better "
            "without more wrong words.",
            lambda basis: [
                Variation("encoder frozen"),
                Variation("a hundredth of the rate", stage2=(*ENCODER_LEARNS, _hundredth(basis))),
                Variation("adapters", stage2=(*ENCODER_LEARNS, "encoder_lora.rank=8", "encoder_lora.alpha=16")),
                Variation("its last layer", stage2=(*ENCODER_LEARNS, _hundredth(basis), "encoder_last_layers=1")),
            ],
        ),
        Experiment(
            "unseen",
            "Tasks and formats left out of training stay hard, and the model abstains on them.",
            lambda basis: [
                Variation("all tasks"),
                Variation(
                    f"without {' and '.join(basis.unseen)}", stage2=(f"data.without_tasks={_list(basis.unseen)}",)
                ),
                Variation("without pure audio", stage2=("data.without_modalities=[audio]",)),
            ],
            lambda name, unseen: name in unseen or ("(" in name and not name.startswith("skill")),
        ),
        Experiment(
            "more-tasks",
            "More tasks in training give higher scores and fewer abstentions over the whole benchmark.",
            lambda basis: [
                Variation("all tasks"),
                Variation(
                    ", ".join(basis.tasks[:FEW_TASKS]), stage2=(f"data.tasks={_list(basis.tasks[:FEW_TASKS])}",)
                ),
            ],
        ),
        Experiment(
            "hours",
            "More hours of speech, by more speakers, give fewer wrong words at an equal number of steps.",
            lambda basis: [
                Variation("all hours"),
                *(Variation(name, stage1=part, stage2=part) for name, part in LESS_SPEECH.items()),
            ],
        ),
        Experiment(
            "pieces",
            "An alignment with shorter pieces of words, which a few hours have often enough, gives fewer wrong words.",
            lambda basis: [
                Variation("whole tokens", stage1=("optimizer.ctc_merges=null",)),
                *(Variation(f"{n:,} merges", stage1=(f"optimizer.ctc_merges={n}",)) for n in MERGES),
            ],
        ),
        Experiment(
            "corpora",
            "An instruction corpus that is built otherwise gives other scores.",
            lambda basis: [
                Variation(name, stage2=(_named("data.path", folder),)) for name, folder in basis.corpora.items()
            ],
            shows=lambda name, unseen: True,
        ),
        Experiment(
            "padding",
            "Whole windows of 30 seconds (full), the real frames alone (trim), and these with a second of silence "
            "behind them give equally many wrong words.",
            lambda basis: [
                *(Variation(padding, stage1=(f"model.audio_padding={padding}",)) for padding in ("trim", "full")),
                Variation("trim, 1 s of silence", stage1=("model.audio_padding=trim", "model.audio_tail=1.0")),
            ],
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
    overrides: Sequence[str] = (),
    stage1: Path | None = None,
    stage1_only: bool = False,
    stage2_steps: int = 0,
    rows: int = 0,
    corpora: Mapping[str, Path] | None = None,
    answer_after: str | None = None,
    evaluate: Evaluate | None = None,
    report: Report = lambda line: None,
) -> Path:
    """Train and score every variation with every seed.

    Every variation takes as many optimizer steps as the reference does, however many rows it sees, unless it varies
    the number of Stage 1's steps. Seeds come one after the other, and each run is recorded when it is done, so that an
    interrupted experiment has results.

    Several processes may work on one `out`: each takes free runs, then waits for those of other processes, and takes
    over the runs of a killed one. All of them end with the same results.

    Args:
        name: a key of `EXPERIMENTS`.
        inputs: corpora and backbones.
        out: models go to `out/runs`, shared between experiments; results to `out/<name>`.
        seeds: one run of each variation a seed.
        unseen: tasks that the experiment `unseen` holds out.
        overrides: of both recipes, for all variations.
        stage1: a finished Stage 1 that every Stage 2 starts from; by default each seed trains its own.
        stage1_only: leave Stage 2 out, and record Stage 1 only.
        stage2_steps: optimizer steps of Stage 2; 0 takes as many as its recipe does.
        rows: of the evaluation corpus; 0 takes all.
        corpora: instruction corpora that the experiment `corpora` compares, by name; the first is the reference.
        answer_after: of replies, see `eval_suite.score.score_rows`.
        evaluate: scores a model; `evaluate_model` by default.
        report: takes progress lines.

    Returns:
        The folder that `results.json` lies in.

    Raises:
        ValueError: no such experiment, the corpus has none of the tasks to hold out, a Stage 1 is given for an
            experiment that varies it, Stage 2 is left out of one that varies it alone, corpora are given for another
            experiment than `corpora` or fewer than two for that, or a variation cannot be trained.
        FileNotFoundError: there is no such corpus, or no finished Stage 1 in the folder given for it.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    if not inputs.instruct.is_dir():  # otherwise its name would be looked up on the Hub
        raise FileNotFoundError(
            f"no corpus at {inputs.instruct}; run `llaso quickstart` first, or name its folder with --quickstart"
        )
    corpora = corpora or {}
    if name == "corpora" and len(corpora) < 2:
        raise ValueError("the experiment corpora compares two corpora or more; name each with --corpus NAME=FOLDER")
    if corpora and name != "corpora":
        raise ValueError(f"the experiment {name} compares no corpora; omit --corpus")
    for folder in corpora.values():
        if not folder.is_dir():
            raise FileNotFoundError(f"no corpus at {folder}; build it first, or name another with --corpus")
        try:  # or it would be noticed after Stage 1
            open_corpus(DataChoice(path=str(folder)))
        except ValueError as error:
            raise ValueError(f"{folder} is no instruction corpus ({error}); name another with --corpus") from error
    if stage1 is not None and not (stage1 / RESULT).is_file():
        raise FileNotFoundError(f"{stage1} holds no finished training ({RESULT} is missing); name one with --stage1")
    experiment = EXPERIMENTS[name]
    tasks = inputs.tasks()
    held_out = [task for task in unseen if task in tasks]
    if name == "unseen" and not held_out:
        raise ValueError(f"{inputs.instruct} has none of the tasks {', '.join(unseen)}; it has {', '.join(tasks)}")
    given = None
    if stage1 is not None:  # it may have moved since
        given = replace(TrainResult(**json.loads((stage1 / RESULT).read_text(encoding="utf-8"))), out=str(stage1))
    evaluate = evaluate or functools.partial(evaluate_model, answer_after=answer_after)
    scored = f"evaluation-{rows or 'all'}"
    if answer_after:
        scored += f"-{hashlib.sha256(answer_after.encode()).hexdigest()[:8]}"
    runs = _Runs(inputs, out / "runs", tuple(overrides), given, rows, evaluate, report, scored)
    of_stage2 = () if stage1_only else tuple(overrides)  # what is meant for Stage 1 may not fit an unused Stage 2
    stage2 = load_recipe(inputs.recipes[1], ("model.checkpoint=not yet known", *of_stage2, "out=not yet known"))
    variations = experiment.variations(Basis(tasks, held_out, stage2.optimizer.learning_rate, corpora))
    varies_stage1 = any(variation.stage1 or variation.stage1_share != 1 for variation in variations)
    if stage1 is not None and varies_stage1:
        raise ValueError(
            f"the experiment {name} varies Stage 1, so that all cannot start from {stage1}; omit --stage1"
        )
    if stage1_only and not varies_stage1:
        raise ValueError(f"the experiment {name} varies Stage 2 alone; omit --stage1-only")
    for variation in variations:
        runs.check(variation, stage1_only)
    reference = variations[0]
    equal_steps = {seed: stage2_steps or runs.stage_2_steps(reference, seed) for seed in seeds if not stage1_only}

    def attempt(variation: Variation, seed: int) -> dict[str, Any]:
        mine = replace(runs, report=_titled(report, f"experiment {name}: {variation.name}, seed {seed}"))
        if stage1_only:
            return mine.stage_1_alone(variation, seed)
        return mine.run(variation, seed, stage2_steps if variation == reference else equal_steps[seed])

    folder = out / name
    names = [variation.name for variation in variations]
    earlier = _kept_aside(folder, report)
    records: dict[tuple[int, int], dict[str, Any]] = {}  # by seed and the variation's place
    waiting = [(seed, place) for seed in seeds for place in range(len(variations))]
    told = False
    while waiting:
        for key in waiting:
            seed, place = key
            try:
                records[key] = attempt(variations[place], seed)
            except FolderBusy:
                continue
            waiting.remove(key)
            told = False
            done = [record for _, record in sorted(records.items())]
            shown = sorted({name for one in done for name in one["scores"] if experiment.shows(name, held_out)})
            results: dict[str, Any] = {
                "name": name,
                "claim": experiment.claim,
                "variations": names,
                "shown": shown,
                "runs": done,
            }
            if corpora:
                results["corpora"] = {of: str(corpus) for of, corpus in corpora.items()}
            if answer_after:
                results["answer_after"] = answer_after
            with one_at_a_time(folder, report):
                write_atomically(folder / RESULTS, json.dumps(results, indent=1) + "\n", durable=True)
            break
        else:
            if not told:
                report(f"experiment {name}: {len(waiting)} left, with other processes; waiting for them")
            told = True
            time.sleep(LOOK_AGAIN)
    if earlier is not None:
        _drop_repeated(folder, earlier, [records[key] for key in sorted(records)], report)
    return folder


def _kept_aside(folder: Path, report: Report) -> Path | None:
    """Copy the results of an earlier command, which this one will replace; return the copy, or None without any.

    A command that is repeated after it was stopped, or that runs in several processes, finds the copy again.
    """
    with one_at_a_time(folder, report):
        if not (folder / RESULTS).exists():
            return None
        content = (folder / RESULTS).read_bytes()
        copies = (folder / f"results-{number}.json" for number in itertools.count(1))
        copy = next(one for one in copies if not one.exists() or one.read_bytes() == content)
        write_atomically(copy, content, durable=True)
        return copy


def _drop_repeated(folder: Path, earlier: Path, runs: Sequence[dict[str, Any]], report: Report) -> None:
    """Delete copies of earlier results whose runs are all among `runs`; say where `earlier` is if it stays."""
    there = {json.dumps(run) for run in runs}  # as text, in which NaN equals itself
    with one_at_a_time(folder, report):
        for copy in folder.glob("results-*.json"):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # a file of something else stays
                if all(json.dumps(run) in there for run in json.loads(copy.read_text(encoding="utf-8"))["runs"]):
                    copy.unlink()
        if earlier.exists():
            report(f"the earlier results, of other settings or seeds, are kept in {earlier}")


def _titled(report: Report, title: str) -> Report:
    """Return a report that writes a title before its first line."""
    titles = [title]

    def line(text: str) -> None:
        while titles:
            report(titles.pop())
        report(text)

    return line


@dataclass(frozen=True)
class _Runs:
    """Trains and scores models, each once; `scored` is the folder of a model's answers and scores within its own."""

    inputs: Inputs
    folder: Path
    overrides: tuple[str, ...]
    given: TrainResult | None
    rows: int
    evaluate: Evaluate
    report: Report
    scored: str

    def run(self, variation: Variation, seed: int, steps: int) -> dict[str, Any]:
        """Train one variation with one seed, and return the record of its two stages and its scores."""
        first = self._stage_1(variation, seed)
        equal = (f"optimizer.max_steps={steps}",) if steps else ()
        start = (_named("model.checkpoint", first.out), _named("data.path", self.inputs.instruct))
        second = self._stage(1, (*start, *self._common(seed), *variation.stage2, *equal))
        out = Path(second.out)
        scores = self.evaluate(out, self.inputs.evaluation, out / self.scored, self.rows)
        return {
            "variation": variation.name,
            "seed": seed,
            "steps": second.steps,
            "stage1_wer": first.wer,
            "stage2_wer": second.wer,
            "skill": scores["normalized"]["skill"]["value"],
            "answered": scores["coverage"],
            "scores": flat_scores(scores),
        }

    def check(self, variation: Variation, stage1_only: bool) -> None:
        """Raise a ValueError if a variation's recipes cannot be trained, before others have taken their time."""
        first = (*self.inputs.stage1(), *self._common(0), *variation.stage1)
        second = ("model.checkpoint=not yet known", *self._common(0), *variation.stage2)
        for recipe, settings in zip(self.inputs.recipes, (first,) if stage1_only else (first, second), strict=False):
            try:
                load_recipe(recipe, (*settings, "out=not yet known"))
            except ValueError as error:
                raise ValueError(f"the variation {variation.name!r} of {recipe}: {error}") from error

    def stage_2_steps(self, variation: Variation, seed: int) -> int:
        """Count the optimizer steps of a variation's Stage 2, by its recipe and corpus."""
        settings = ("model.checkpoint=not yet known", _named("data.path", self.inputs.instruct), *self._common(seed))
        return _steps_of(self.inputs.recipes[1], (*settings, *variation.stage2))

    def stage_1_alone(self, variation: Variation, seed: int) -> dict[str, Any]:
        """Train Stage 1 only, and return its record."""
        wer = self._stage_1(variation, seed).wer
        nothing: dict[str, Any] = {"steps": 0, "stage2_wer": None, "skill": None, "answered": None, "scores": {}}
        return {"variation": variation.name, "seed": seed, "stage1_wer": wer} | nothing

    def _common(self, seed: int) -> tuple[str, ...]:
        return (_named("compute.encoder_cache", self.folder / "encoder-cache"), *self.overrides, f"seed={seed}")

    def _stage_1(self, variation: Variation, seed: int) -> TrainResult:
        settings = (*self.inputs.stage1(), *self._common(seed))
        if variation.stage1_share == 1 and not variation.stage1:
            return self.given or self._stage(0, settings)
        steps = max(1, round(_steps_of(self.inputs.recipes[0], settings) * variation.stage1_share))
        return self._stage(0, (*settings, *variation.stage1, f"optimizer.max_steps={steps}"))

    def _stage(self, stage: int, overrides: tuple[str, ...]) -> TrainResult:
        """Train a stage in the folder of its recipe, so that experiments share equal runs."""
        recipe = load_recipe(self.inputs.recipes[stage], (*overrides, "out=not yet known"))
        out = {"out": str(self._folder_of(recipe, f"stage{stage + 1}"))}
        return train(recipe, out, report=lambda line: self.report(f"    {line}"))

    def _folder_of(self, recipe: Recipe, stage: str) -> Path:
        """Return the folder of a run whose result-deciding settings are the same; otherwise the path of a new one."""
        settings = decisive(recipe.to_dict())
        for file in sorted(self.folder.glob(f"{stage}-*/{RECIPE}")):
            try:
                same = decisive(recipe_of(file.parent).to_dict()) == settings
            except ValueError as error:
                self.report(f"    not looked at: {error}")
                continue
            if same:
                return file.parent
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{stage}-{digest}"


@functools.cache  # called repeatedly while waiting for other processes
def _steps_of(recipe: str, overrides: tuple[str, ...]) -> int:
    """Count the optimizer steps that a recipe takes on its corpus."""
    settings = load_recipe(recipe, (*overrides, "out=not yet known"))
    batch = settings.batch
    if batch.per_device == "auto":  # what fits on the device does not change a step's rows
        batch = replace(batch, per_device=1)
    return count_steps(settings, plan_of(replace(settings, batch=batch.on(1)), open_corpus(settings.data), 1))


def flat_scores(scores: Scores) -> dict[str, Any]:
    """Return metric, value, direction and coverage of every task, and of each format if there are several.

    The skill of a format is its mean over the format's tasks.
    """
    named = dict(scores["tasks"])
    for task in scores["tasks"]:
        formats = {form: part["tasks"][task] for form, part in scores["modalities"].items() if task in part["tasks"]}
        if len(formats) > 1:
            named |= {f"{task} ({form})": entry for form, entry in formats.items()}
    skills = {}
    formats = scores["modalities"]
    for form, part in formats.items():
        skill = part["normalized"]["skill"]
        if len(formats) > 1 and skill and skill["value"] is not None:
            entry = {"metric": "", "value": skill["value"], "direction": "higher", "answered": part["coverage"]}
            skills[f"skill ({form})"] = entry
    return skills | {
        name: {key: entry["primary"][key] for key in ("metric", "value", "direction")}
        | {"answered": entry["coverage"]}
        for name, entry in named.items()
        if entry["primary"]
    }


def evaluate_model(model: Path, corpus: Path, out: Path, rows: int, answer_after: str | None = None) -> Scores:
    """Answer the evaluation corpus and score the answers, in a process of its own; finished scores are read again.

    The process gives its memory back when it ends, and holds the folder's lock as well, so that another experiment
    waits for it even if this one is killed.

    Raises:
        RuntimeError: the process failed; its traceback is in the message.
        FolderBusy: another process scores the model, or one that a killed process had started.
    """
    file = out / "scores.json"
    with alone_in(out) as lock:
        if not file.exists():
            spawn = multiprocessing.get_context("spawn")
            failure = spawn.SimpleQueue()
            arguments = (DupFd(lock), failure, model, corpus, out / "predictions", rows, file, answer_after)
            child = spawn.Process(target=_generate_and_score, args=arguments)
            with contextlib.suppress(BrokenPipeError):  # it ended during its start, which its exit code shows
                child.start()
            child.join()
            if child.exitcode:
                why = f"exit code {child.exitcode}" if failure.empty() else failure.get()
                raise RuntimeError(f"{model} could not be scored on {corpus}: {why}")
        return json.loads(file.read_text(encoding="utf-8"))


def _generate_and_score(
    lock: Any,
    failure: SimpleQueue[str],
    model: Path,
    corpus: Path,
    predictions: Path,
    rows: int,
    file: Path,
    answer_after: str | None,
) -> None:
    from eval_suite.generate import generate
    from eval_suite.score import score

    lock.detach()  # this process's copy of the lock, held until it ends
    try:
        generate(
            str(model),
            corpus,
            predictions,
            limit=rows or None,
            batch_size=ROWS_AT_ONCE,
            max_new_tokens=ANSWER_TOKENS + (TRANSCRIPT_TOKENS if answer_after else 0),
            overwrite=True,
        )
        made = json.loads((predictions / "generation.json").read_text(encoding="utf-8"))
        if made["errors"] == made["rows"]:
            raise RuntimeError(f"no row could be answered; {predictions} says why")
        scores = score(predictions, intervals=False, answer_after=answer_after)
        write_atomically(file, json.dumps(scores, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=True)
    except Exception:  # of any kind: the parent process has no other way to learn why this one failed
        failure.put(traceback.format_exc())
        raise
