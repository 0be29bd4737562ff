"""Both training stages. `train` reads from top to bottom what a run does; the recipe says what differs.

Stage 1 trains the projector on ASR, Stage 2 the projector and the LLM on all tasks: the same code with other recipes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments, set_seed

from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import alone_in
from modeling_llaso.conversion import new_model
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import Recipe, load_recipe
from ..rows.batch_plan import BatchRule, steps_per_epoch
from ..rows.collator import Collator, RowEncoder
from ..rows.corpora import Corpus, NumberedCorpus, open_corpus, open_held_out
from ..rows.encoder_cache import GIGABYTE, EncoderCache, fill, fingerprint
from .callbacks import Progress, Report, StopOnSignal, WatchHeldOut, left_time
from .checkpoints import discard_all, put_aside_partial, whole_checkpoints
from .distillation import TeacherCollator
from .distributed import all_see_the_same, patient_barrier, plain_errors
from .held_out import HeldOut
from .history import History, plot_history, read_history
from .model_parts import add_lora, describe_parts, freeze_all_but, hold_frozen_in, report_parts
from .resume import StepPlan, digest_of, note, refuse_another_run, refuse_other_rows, step_plan
from .trainer import LlasoTrainer, export

logger = logging.getLogger(__name__)

RESULT = "training.json"
HISTORY = "history.jsonl"
CURVE = "loss.png"
WER_TASK = "ASR"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run came to.

    Attributes:
        out: the model and its processor.
        steps: optimizer steps.
        loss: mean loss of an answer token over the last tenth of the run.
        wer: word error rate on held-out rows after the last step; None where no row was held out.
        wer_words: reference words it was counted on.
        gate_wer: the rate to come under, as the recipe has it.
        seconds: wall time of the last process that trained it; resumed runs do not add up.
        skipped: rows left out because they could not be read, each time they were met.
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
        """Whether the word error rate came under the gate; None where there is no gate or no held-out row."""
        if self.gate_wer is None or self.wer is None:
            return None
        return self.wer < self.gate_wer


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    report: Report = logger.info,
) -> TrainResult:
    """Train as a recipe says, from wherever an earlier run of it stopped.

    Args:
        recipe: a YAML file, the name of one of the package's own, a mapping, or a `Recipe`.
        overrides: `"key=value"` strings, or a mapping of dotted names.
        report: takes a line at a time for whoever is watching.

    Returns:
        The result; read from disk where the run was finished before.

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
    if finished := _finished(out, settings, plan):
        return finished
    with plain_errors(), alone_in(out) if main_process else contextlib.nullcontext():
        # Whoever was in the folder a moment ago may have finished the run.
        return _finished(out, settings, plan) or _train(
            settings, out, plan, main_process, report if main_process else logger.debug
        )


def _train(settings: Recipe, out: Path, plan: StepPlan, main_process: bool, say: Report) -> TrainResult:
    """The run itself, alone in its folder."""
    start = time.perf_counter()
    if main_process:
        put_aside_partial(out)
    checkpoints = whole_checkpoints(out)
    start_step, checkpoint = checkpoints[-1] if checkpoints else (0, None)

    # The model, and which of its parts learn.
    set_seed(settings.seed)
    model, processor = open_model(settings)
    frozen = freeze_all_but(model, settings.train)
    if settings.lora.rank:
        add_lora(model, settings.lora)
    if settings.compute.frozen_weights == "bf16":
        hold_frozen_in(model, torch.bfloat16)
    for line in describe_parts(report_parts(model)):
        say(line)

    # The rows, and which of them meet.
    corpus = open_corpus(settings.data, settings.seed, processor, settings.compute.workers)
    if main_process:
        plan = replace(plan, rows=corpus.rows, data=digest_of(corpus, settings.data))
        if start_step:
            refuse_other_rows(out, plan)
        note(out, settings, plan)
    rule = batch_rule(settings, plan.processes)
    epoch_steps, steps = count_steps(settings, corpus, rule)
    cache = open_cache(settings, model, processor)
    encode = RowEncoder(processor, settings.data.max_length, cache)
    distills = settings.optimizer.distill_weight > 0
    collator = Collator(encode, settings.data.bad_rows == "skip", TeacherCollator(encode) if distills else None)

    # The trainer, and who looks on.
    trainer = LlasoTrainer(
        model,
        training_arguments(settings, steps),
        recipe=settings,
        processor=processor,
        corpus=corpus,
        rule=rule,
        collator=collator,
        frozen=frozen,
        history=History(out / HISTORY, start_step, main_process, recent=max(1000, 6 * settings.watch.log_every)),
        start_step=start_step,
    )
    all_see_the_same(start_step, out)
    held_out = HeldOut(
        open_held_out(settings.data, WER_TASK, max(settings.watch.final_rows, settings.watch.evaluate_rows)),
        processor,
        cache,
        sharded=trainer.shards,
        skip_bad_rows=settings.data.bad_rows == "skip",
    )
    stop = StopOnSignal(trainer)
    trainer.add_callback(Progress(trainer, say, settings.watch.log_every, epoch_steps))
    if held_out.rows:
        trainer.add_callback(WatchHeldOut(trainer, held_out, say))
    trainer.add_callback(stop)
    if cache is not None:
        fill_cache(cache, trainer, corpus, held_out, say)
    say(
        f"{steps:,} steps of {settings.batch.per_device} x {settings.batch.accumulation} x {plan.processes} rows"
        + (f", going on from step {start_step:,}" if start_step else "")
    )
    try:
        with stop:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.all_stop:
                step = trainer.state.global_step
                say(f"stopped after step {step:,}, which is saved; the same command goes on from there")
                trainer.accelerator.wait_for_everyone()  # once one process is gone, a launcher ends the others
                raise SystemExit(128 + (stop.received or signal.SIGTERM))
    finally:
        if main_process:
            draw_curve(out, settings)

    # What is left behind.
    export(trainer, out)
    records = read_history(out / HISTORY)
    result = _result(records, settings, steps, time.perf_counter() - start)
    if main_process:
        write_atomically(out / RESULT, json.dumps(asdict(result), indent=2) + "\n", durable=True)
        discard_all(out)
    say(f"done in {left_time(result.seconds)}: {out}")
    return result


def open_model(recipe: Recipe) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """The model and processor that a recipe starts from, in float32.

    Raises:
        ValueError: the checkpoint is of another architecture, or its attention is not installed.
        FileNotFoundError: a folder is not there.
    """
    choice = recipe.model
    for name in ("checkpoint",) if choice.checkpoint else ("encoder", "llm"):
        path = getattr(choice, name)
        if path.startswith((".", "/", "runs/")) and not Path(path).is_dir():
            raise FileNotFoundError(f"model.{name}: no folder {path}; train or fetch it first, or name another")
    if choice.checkpoint is None:
        assert choice.encoder is not None and choice.llm is not None
        model, processor = new_model(
            choice.encoder,
            choice.llm,
            audio_padding=choice.audio_padding or "full",
            projector_stride=choice.projector_stride or 1,
            projector_pooling=choice.projector_pooling or "average",
            dtype="float32",
            seed=recipe.seed,
        )
    else:
        config = transformers.AutoConfig.from_pretrained(choice.checkpoint, revision=choice.revision or "main")
        if config.model_type != "llaso":
            raise ValueError(
                f"model.checkpoint {choice.checkpoint} is a {config.model_type} model, not a LLaSO one; to start from "
                "an encoder and an LLM, set model.checkpoint=null and name model.encoder and model.llm"
            )
        for name in ("projector_stride", "projector_pooling"):
            if getattr(choice, name) not in (None, getattr(config, name)):
                raise ValueError(
                    f"model.{name} is {getattr(choice, name)}, but the projector of {choice.checkpoint} was made with "
                    f"{getattr(config, name)}; leave it out, or start from an encoder and an LLM"
                )
        model = LlasoForConditionalGeneration.from_pretrained(
            choice.checkpoint,
            revision=choice.revision or "main",
            dtype=torch.float32,
        )
        processor = LlasoProcessor.from_pretrained(choice.checkpoint, revision=choice.revision or "main")
    if recipe.compute.attention:
        try:
            model.set_attn_implementation(recipe.compute.attention)
        except ImportError as error:
            raise ValueError(f"compute.attention={recipe.compute.attention}: {error}") from error
    if choice.audio_padding is not None:
        model.config.audio_padding = processor.audio_padding = choice.audio_padding
    return model, processor


def batch_rule(recipe: Recipe, world: int) -> BatchRule:
    """How this recipe's rows become micro-batches on `world` processes."""
    batch = recipe.batch
    return BatchRule(
        batch.per_device, batch.max_tokens, batch.group_by_length, batch.window, batch.accumulation * world
    )


def count_steps(recipe: Recipe, corpus: Corpus, rule: BatchRule) -> tuple[int, int]:
    """Optimizer steps of one epoch and of the run; a stream's epoch is unknown, so its run counts as one."""
    if recipe.data.streaming:
        return recipe.optimizer.max_steps, recipe.optimizer.max_steps
    epoch_steps = steps_per_epoch(corpus.windows(rule, recipe.seed), rule, recipe.seed)
    return epoch_steps, recipe.optimizer.max_steps or max(1, round(recipe.optimizer.epochs * epoch_steps))


def training_arguments(recipe: Recipe, steps: int) -> TrainingArguments:
    """The recipe in transformers' words."""
    optimizer, compute, watch = recipe.optimizer, recipe.compute, recipe.watch
    reporters = list(watch.reporters)
    if reporters == ["auto"]:
        reporters = ["trackio"] if importlib.util.find_spec("trackio") else ["none"]
    arguments = TrainingArguments(
        output_dir=recipe.out,
        per_device_train_batch_size=recipe.batch.per_device,
        gradient_accumulation_steps=recipe.batch.accumulation,
        max_steps=steps,
        learning_rate=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_ratio,
        lr_scheduler_type=optimizer.schedule,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip,
        bf16=compute.precision == "bf16",
        activation_checkpointing=compute.gradient_checkpointing,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=compute.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=watch.log_every,
        save_steps=watch.save_every,
        report_to=reporters,
        project="llaso",
        run_name=Path(recipe.out).name,
        seed=recipe.seed,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the plan skips by itself, without reading what it skips
        ddp_find_unused_parameters="encoder" in recipe.train,  # a batch of text alone does not use it
        logging_nan_inf_filter=False,  # a loss that is no number stops the run instead
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        logger.warning("of %d GPUs one is used; `accelerate launch` takes them all", arguments.n_gpu)
        arguments._n_gpu = 1  # or the Trainer would copy the model to all of them from this one process
    return arguments


def open_cache(recipe: Recipe, model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> EncoderCache | None:
    """The kept output of this recipe's frozen encoder, or None where the recipe keeps none."""
    if recipe.encoder_cache_folder is None:
        return None
    return EncoderCache(
        recipe.encoder_cache_folder,
        fingerprint(model, processor, recipe.compute.precision),
        model.config.audio_config.d_model,
        int(recipe.compute.encoder_cache_gb * GIGABYTE),
    )


def fill_cache(cache: EncoderCache, trainer: LlasoTrainer, corpus: Corpus, held_out: HeldOut, report: Report) -> None:
    """Encode every clip of training and validation that is not kept yet; the first process does, the others wait."""
    if not isinstance(corpus, NumberedCorpus):
        return
    model, processor = trainer.model, trainer.processing_class
    assert isinstance(model, LlasoForConditionalGeneration) and isinstance(processor, LlasoProcessor)
    with patient_barrier() as wait_for_first:
        if trainer.is_world_process_zero():
            order = corpus.lengths.argsort(kind="stable").tolist()
            rows = (row for part in (held_out.rows, map(corpus.__getitem__, order)) for row in part)
            total = len(order) + len(held_out.rows)
            progress = _every_few_seconds(report, total)
            model.eval()
            fill(cache, model, processor, rows, trainer.accelerator.autocast, trainer.args.device, progress, report)
            report(f"encoder output of {len(cache.entries):,} clips kept: {cache.bytes_used / 1e6:,.0f} MB")
        wait_for_first()
    cache.read_index()


def _every_few_seconds(report: Report, total: int, seconds: float = 5.0) -> Callable[[int], None]:
    """A progress function that says now and then how far the encoder is."""
    start = last = time.perf_counter()

    def progress(done: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= seconds and done:
            last = now
            report(f"encoding {done:,}/{total:,} rows  {left_time((now - start) / done * (total - done))} left")

    return progress


def draw_curve(out: Path, recipe: Recipe) -> None:
    """Draw what the history holds, however the run ended; where that fails, the run's own end is what counts."""
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


def _finished(out: Path, recipe: Recipe, plan: StepPlan) -> TrainResult | None:
    """The result of this very recipe in `out`, if it is there.

    Raises:
        ValueError: `out` holds a run, finished or not, of another recipe.
    """
    finished = (out / RESULT).exists()
    refuse_another_run(out, recipe, plan, finished)
    if not finished:
        return None
    result = TrainResult(**json.loads((out / RESULT).read_text(encoding="utf-8")))
    return replace(result, out=recipe.out)  # the folder may have moved since
