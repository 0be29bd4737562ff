"""Runs a training: `train` takes a recipe, sets up model, rows and trainer, trains, and exports the model.

Stage 1 trains the projector on ASR, Stage 2 the projector and the LLM on all tasks: the same code with other recipes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from llaso.alignment.alignment import save_alignment
from llaso.progress import Report, time_in_words
from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import alone_in
from llaso_common.half_precision import computes_in_bf16

from ..recipe.recipe import BatchChoice, Recipe, load_recipe
from ..rows.collator import RowEncoder, pad
from ..rows.training_rows import TrainingRows, set_up_rows
from .batch_size import measured_batch
from .callbacks import HeldOutEvaluation, Progress, StopOnSignal
from .checkpoints import discard_all, last_checkpoint
from .ctc_loss import match_loudness
from .distributed import check_same_start, long_barrier, plain_errors
from .held_out import HeldOut
from .history import RESULT, TrainResult, draw_curve, result_of
from .model_setup import NORM_IN_FP32, set_up_model, vector_norms
from .resume import StepPlan, batch_in_numbers, begin_run, finished_result, step_plan
from .trainer import LlasoTrainer, export

logger = logging.getLogger(__name__)

NORM_ROWS = 8
"""Number of rows whose audio embeddings are measured at the start."""


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
    batch = batch_in_numbers(out, settings.batch, world)
    plan = step_plan(batch, world)
    if finished := finished_result(out, settings, plan, change):
        return finished
    with plain_errors(), alone_in(out) if main_process else contextlib.nullcontext():
        # Another process may have finished the run just before the lock was taken.
        return finished_result(out, settings, plan, change) or _train(
            settings, batch, plan, main_process, report if main_process else logger.debug
        )


def _train(asked: Recipe, batch: BatchChoice, plan: StepPlan, main_process: bool, report: Report) -> TrainResult:
    """Train, with the folder's lock held.

    Args:
        asked: the recipe as it was given, which the folder records.
        batch: its batches in numbers, or still to be measured.
        plan: of this launch.
        main_process: whether this process writes.
        report: takes progress lines.
    """
    out, recipe = Path(asked.out), replace(asked, batch=batch)
    start = time.perf_counter()
    start_step, checkpoint = last_checkpoint(out, main_process)
    set_seed(recipe.seed)
    warnings.filterwarnings("ignore", message=NORM_IN_FP32)
    if recipe.compute.precision == "bf16" and not computes_in_bf16():
        logger.warning(
            "compute.precision is bf16, for which this machine has no instructions, so that steps take many times as "
            "long as in fp32; set compute.precision=auto compute.frozen_weights=auto"
        )
    model, processor, frozen = set_up_model(recipe, report)
    if batch.per_device == "auto":
        found = measured_batch(recipe, model, processor, frozen, plan.processes, report).on(plan.processes)
        recipe, plan = replace(asked, batch=found), step_plan(found, plan.processes)
    rows = set_up_rows(recipe, model, processor, plan.processes)
    if rows.steps < start_step:
        raise ValueError(
            f"{out}: the recipe asks for {rows.steps:,} steps, but step {start_step:,} has been trained; set "
            f"optimizer.max_steps={start_step} or more"
        )
    history = begin_run(out, asked, plan, rows.corpus, start_step, main_process, report)
    trainer = LlasoTrainer(model, recipe, processor, rows, frozen, history, start_step)
    check_same_start(start_step, out)
    held_out = HeldOut(
        rows.held_out,
        processor,
        rows.cache,
        trainer.shards,
        rows.collator.skip_bad_rows,
        alignment=trainer.alignment if trainer.ctc_weight == 1 else None,
    )
    stop = StopOnSignal(trainer)
    trainer.add_callback(Progress(trainer, report, rows.plan.epoch_steps(), recipe.watch.show_seconds))
    if held_out.rows:
        trainer.add_callback(HeldOutEvaluation(trainer, held_out, recipe.watch, report))
    trainer.add_callback(stop)
    _fill_cache(trainer, rows, held_out, report)
    if not start_step:
        _report_norms(trainer, rows, report)
    report(
        f"{rows.steps:,} steps of {recipe.batch.at_once} x {recipe.batch.accumulation} x {plan.processes} rows"
        + (f", going on from step {start_step:,}" if start_step else "")
    )
    try:
        with stop:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            stop.end_run(report)
    finally:
        trainer.writer.close()
        if main_process:
            draw_curve(out, f"{out.name}: {', '.join(recipe.train)}")

    if trainer.alignment is not None:
        loudness = match_loudness(trainer.unwrapped) if trainer.ctc_weight == 1 else 1.0
        save_alignment(trainer.unwrapped, trainer.alignment, loudness)
    export(trainer, out)
    result = result_of(recipe.out, rows.steps, recipe.watch.gate_wer, time.perf_counter() - start)
    if main_process:
        write_atomically(out / RESULT, json.dumps(asdict(result), indent=2) + "\n", durable=True)
        discard_all(out)
    report(f"done in {time_in_words(result.seconds)}: {out}")
    return result


def _report_norms(trainer: LlasoTrainer, rows: TrainingRows, report: Report) -> None:
    """Report the norms of audio and text embeddings, on a few rows with audio."""
    if trainer.shards:
        return
    encode = RowEncoder(trainer.processor, rows.collator.encode.max_length)
    examples = []
    for number in range(min(NORM_ROWS, rows.corpus.rows)):
        with contextlib.suppress(ValueError):  # unreadable rows are reported when training reaches them
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
            autocast, device = trainer.accelerator.autocast, trainer.args.device
            rows.fill_cache(held_out.rows, trainer.unwrapped, autocast, device, report)
        wait_for_main()
    rows.cache.read_index()
