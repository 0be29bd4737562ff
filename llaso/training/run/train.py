"""Runs a training: `train` takes a recipe, sets up model, rows and trainer, trains, and exports the model.

Stage 1 trains the projector on ASR, Stage 2 the projector and the LLM on all tasks: the same code with other recipes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from llaso.progress import Report, time_in_words
from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import alone_in

from ..recipe.recipe import Recipe, load_recipe
from ..rows.collator import RowEncoder, pad
from ..rows.corpora import NumberedCorpus
from ..rows.training_rows import TrainingRows, fill_cache, set_up_rows
from .callbacks import HeldOutEvaluation, Progress, StopOnSignal
from .checkpoints import discard_all, remove_broken_checkpoints, whole_checkpoints
from .distributed import check_same_start, long_barrier, plain_errors
from .held_out import HeldOut
from .history import History, plot_history, read_history
from .model_parts import describe_parts, report_parts
from .model_setup import open_model, set_up_parts, vector_norms
from .resume import (
    CHANGEABLE,
    StepPlan,
    changed_settings,
    digest_of,
    record_run,
    refuse_another_run,
    refuse_other_rows,
    step_plan,
)
from .trainer import LlasoTrainer, export

logger = logging.getLogger(__name__)

RESULT = "training.json"
HISTORY = "history.jsonl"
CURVE = "loss.png"
NORM_ROWS = 8
"""Rows whose vectors are measured at the start."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        out: the model and its processor.
        steps: optimizer steps.
        loss: mean loss of an answer token over the last tenth of the run.
        wer: word error rate on held-out rows after the last step; None if no row was held out.
        wer_words: reference words it was counted on.
        gate_wer: the rate to come under, as the recipe has it.
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


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    report: Report = logger.info,
    change: Collection[str] = (),
) -> TrainResult:
    """Train as a recipe says, resuming an earlier run of it.

    Args:
        recipe: a YAML file, the name of one of the package's own, a mapping, or a `Recipe`.
        overrides: `"key=value"` strings, or a mapping of dotted names.
        report: takes progress lines.
        change: settings that may differ from those the run in the folder began with, such as
            `optimizer.learning_rate`; the history records the change.

    Returns:
        The result; read from disk if the run was finished before.

    Raises:
        ValueError: a mistake in the recipe or the data, or `out` holds a run of another recipe.
        OSError: files that cannot be read or written.
        FolderBusy: another process trains in `out`.
        TrainingDiverged: the loss became NaN or exploded.
        SystemExit: stopped by SIGTERM, Ctrl-C or SIGHUP, after saving; its code is 128 and the signal's number.
    """
    settings = load_recipe(recipe, overrides)
    out = Path(settings.out)
    main_process, world = int(os.environ.get("RANK", 0)) == 0, int(os.environ.get("WORLD_SIZE", 1))
    plan = step_plan(settings, world)
    if finished := _finished(out, settings, plan, change):
        return finished
    with plain_errors(), alone_in(out) if main_process else contextlib.nullcontext():
        # Another process may have finished the run just before the lock was taken.
        return _finished(out, settings, plan, change) or _train(
            settings, out, plan, main_process, report if main_process else logger.debug
        )


def _train(recipe: Recipe, out: Path, plan: StepPlan, main_process: bool, report: Report) -> TrainResult:
    """Train, with the folder's lock held."""
    start = time.perf_counter()
    if main_process:
        remove_broken_checkpoints(out)
    checkpoints = whole_checkpoints(out)
    start_step, checkpoint = checkpoints[-1] if checkpoints else (0, None)

    set_seed(recipe.seed)
    model, processor = open_model(recipe)
    frozen = set_up_parts(model, recipe)
    for line in describe_parts(report_parts(model)):
        report(line)

    rows = set_up_rows(recipe, model, processor, plan.processes)
    if main_process:
        plan = replace(plan, rows=rows.corpus.rows, data=digest_of(rows.corpus, recipe.data))
        if start_step:
            refuse_other_rows(out, plan)
    history = History(out / HISTORY, start_step, main_process, recent=max(1000, 6 * recipe.watch.log_every))
    if main_process:
        _record_changes(out, recipe, history, start_step, report)
        record_run(out, recipe, plan)
    trainer = LlasoTrainer(model, recipe, processor, rows, frozen, history, start_step)
    check_same_start(start_step, out)
    held_out = HeldOut(rows.held_out, processor, rows.cache, trainer.shards, rows.collator.skip_bad_rows)
    stop = StopOnSignal(trainer)
    trainer.add_callback(Progress(trainer, report, rows.epoch_steps, recipe.watch.show_seconds))
    if held_out.rows:
        trainer.add_callback(HeldOutEvaluation(trainer, held_out, recipe.watch, report))
    trainer.add_callback(stop)
    _fill_cache(trainer, rows, held_out, report)
    if not start_step:
        _report_norms(trainer, rows, report)
    report(
        f"{rows.steps:,} steps of {recipe.batch.per_device} x {recipe.batch.accumulation} x {plan.processes} rows"
        + (f", going on from step {start_step:,}" if start_step else "")
    )
    try:
        with stop:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.all_stop:
                step = trainer.state.global_step
                report(f"stopped after step {step:,}, which is saved; the same command goes on from there")
                trainer.accelerator.wait_for_everyone()  # once one process is gone, a launcher ends the others
                raise SystemExit(128 + (stop.received or signal.SIGTERM))
    finally:
        if main_process:
            draw_curve(out, recipe)

    export(trainer, out)
    result = _result(read_history(out / HISTORY), recipe, rows.steps, time.perf_counter() - start)
    if main_process:
        write_atomically(out / RESULT, json.dumps(asdict(result), indent=2) + "\n", durable=True)
        discard_all(out)
    report(f"done in {time_in_words(result.seconds)}: {out}")
    return result


def _record_changes(out: Path, recipe: Recipe, history: History, start_step: int, report: Report) -> None:
    """Keep in the history which settings a resumed run has changed."""
    changes = {name: values for name, values in changed_settings(out, recipe).items() if name in CHANGEABLE}
    if changes:
        history.add({"kind": "change", "step": start_step, "settings": changes})
        for name, (was, now) in changes.items():
            report(f"from step {start_step:,} on, {name} is {now}, not {was}")


def _report_norms(trainer: LlasoTrainer, rows: TrainingRows, report: Report) -> None:
    """Say how large projected audio is beside the text's embeddings, on a few rows with audio."""
    if trainer.shards or not isinstance(rows.corpus, NumberedCorpus):
        return
    encode = RowEncoder(trainer.processor, rows.collator.encode.max_length)
    examples = []
    for number in range(min(NORM_ROWS, rows.corpus.rows)):
        with contextlib.suppress(ValueError):  # training names the rows that cannot be read
            examples.append(encode(rows.corpus[number]))
    batch = pad(examples, trainer.processor.tokenizer.pad_token_id)
    if "input_features" in batch:
        names = ("input_ids", "attention_mask", "input_features", "input_features_mask")
        model = trainer.unwrapped.eval()
        with trainer.accelerator.autocast():
            audio, text = vector_norms(model, {name: batch[name] for name in names})
        report(f"mean norm of projected audio {audio:.3g}, of text embeddings {text:.3g}")


def _fill_cache(trainer: LlasoTrainer, rows: TrainingRows, held_out: HeldOut, report: Report) -> None:
    """Fill the encoder cache on the main process, while the others wait."""
    if rows.cache is None:
        return
    with long_barrier() as wait_for_main:
        if trainer.is_world_process_zero():
            model, processor = trainer.unwrapped, trainer.processor
            autocast, device = trainer.accelerator.autocast, trainer.args.device
            fill_cache(rows.cache, rows.corpus, held_out.rows, model, processor, autocast, device, report)
        wait_for_main()
    rows.cache.read_index()


def draw_curve(out: Path, recipe: Recipe) -> None:
    """Draw the history's curve; a failure is only logged, so that it does not hide how the run ended."""
    try:
        plot_history(read_history(out / HISTORY), out / CURVE, f"{out.name}: {', '.join(recipe.train)}")
    except OSError as error:
        logger.warning("%s could not be drawn: %s", out / CURVE, error)


def _result(history: list[dict[str, Any]], recipe: Recipe, steps: int, seconds: float) -> TrainResult:
    trained = [record for record in history if record["kind"] == "step"]
    held_out = [record for record in history if record["kind"] == "held_out"]
    last = trained[-max(1, steps // 10) :]
    tokens = sum(record["answer_tokens"] for record in last)
    return TrainResult(
        out=recipe.out,
        steps=steps,
        loss=sum(record["loss"] * record["answer_tokens"] for record in last) / max(1, tokens),
        wer=held_out[-1]["wer"] if held_out else None,
        wer_words=held_out[-1]["words"] if held_out else 0,
        gate_wer=recipe.watch.gate_wer,
        seconds=seconds,
        skipped=sum(record["skipped"] for record in trained),
    )


def _finished(out: Path, recipe: Recipe, plan: StepPlan, change: Collection[str]) -> TrainResult | None:
    """Return the result in `out` if a run of this recipe has finished there.

    Raises:
        ValueError: `out` holds a run, finished or not, of another recipe.
    """
    finished = (out / RESULT).exists()
    refuse_another_run(out, recipe, plan, finished, change)
    if not finished:
        return None
    result = TrainResult(**json.loads((out / RESULT).read_text(encoding="utf-8")))
    return replace(result, out=recipe.out)  # the folder may have moved since
