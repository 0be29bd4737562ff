"""transformers' Trainer with what LLaSO adds: planned batches, answer-only loss, frozen parts, divergence checks.

One epoch of the Trainer is the whole run: the plan chains the corpus's epochs itself, so that a resumed run starts in
the middle of the plan without reading what came before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llaso.alignment.alignment import Alignment
from modeling_llaso.modeling_llaso import LlasoAudioOutput, LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import Recipe
from ..rows.collator import IGNORED
from ..rows.packing import Packed, members, starts_of, taken_frames
from ..rows.read_ahead import ReadAhead, RowsAsRead
from ..rows.shared_prefix import SharedPrefix, is_worth_it
from ..rows.training_rows import TrainingRows
from .answer_loss import chunked_losses
from .background_save import BackgroundSave, WaitForSave, on_host
from .checkpoints import WEIGHTS, frozen_digests, frozen_sources, load_trainable, mark_complete, save_trainable
from .chips import chip_name, peak_of
from .compilation import compile_layers, should_compile
from .ctc_loss import alignment_with, call_through
from .data_workers import follow_main_process
from .distillation import Teacher
from .distributed import gathered, is_peer_lost
from .heap import TrimHeap
from .history import History
from .model_setup import add_adapters, keep_frozen, merge_lora
from .optimizer_groups import has_own_rates, late_parts, late_parts_frozen, parameter_groups, set_learning_rates
from .packed_forward import use_packing
from .recomputation import checkpointing_arguments
from .shared_forward import share_prefixes, within_window
from .spec_augment import hide_stretches
from .step_flops import StepFlops
from .step_timer import BACKWARD, ENCODER, LLM, OPTIMIZER, READING, SAVING, Mark, StepTimer, stepping

logger = logging.getLogger(__name__)

CALM_STEPS = 20
"""Steps after which a jump of the loss counts as an explosion, and the number of steps in its median."""
STEPS_WITHOUT_ROWS = 10
"""Steps after which a run ends if it could read none of their rows."""
NAMED_ROWS = 8
"""Rows that are named when a run diverges."""
SUMMED_TENSORS = {
    "loss_sum": "row_losses",
    "answer_tokens": "row_tokens",
    "micro_losses": "loss",
    "tokens": "tokens",
    "flop": "flop",
}
"""Numbers of a step's record, and the entry of its micro-batches that each is the sum of."""
SUMS = (*SUMMED_TENSORS, "padded", "skipped", "micro_batches")
"""Numbers of a step's record that are summed over its micro-batches and all processes."""
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""Errors that a full disk causes: Python's own, torch.save's, safetensors'."""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite, or exploded; the message names the rows of that step."""


class LlasoTrainer(Trainer):
    """One LLaSO training run.

    Args:
        model: with its parts frozen as the recipe says.
        recipe: of the run.
        processor: saved with every checkpoint.
        rows: what is read, and in which steps.
        frozen: modules kept in `eval()`.
        history: takes a record of every step.
        start_step: steps that earlier runs have done.
    """

    def __init__(
        self,
        model: LlasoForConditionalGeneration,
        recipe: Recipe,
        processor: LlasoProcessor,
        rows: TrainingRows,
        frozen: list[nn.Module],
        history: History,
        start_step: int = 0,
    ) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.sources = frozen_sources(recipe.model)
        self.processor, self.rows, self.frozen = processor, rows, frozen
        self.history, self.start_step = history, start_step
        self.per_token = recipe.optimizer.normalization == "token"
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self.all_stop = False  # whether any process was asked to stop: they all learn of it at the same step
        self.step_parts: list[dict[str, Any]] = []  # what each micro-batch of the step under way adds to its record
        super().__init__(
            model=model,
            args=training_arguments(recipe, rows.steps),
            train_dataset=RowsAsRead(),
            data_collator=rows.collator,
            processing_class=processor,
        )
        self.remove_callback(PrinterCallback)
        self.learned = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.steps_without_rows = 0
        self.timer = StepTimer(self.args.device.type == "cuda")
        self.timer.watch(model.model.audio_tower, ENCODER)
        self.packing = use_packing(model, lambda: self.timer.measure(ENCODER)) if recipe.batch.packing else None
        self.shares_prefix = recipe.compute.share_prefix and recipe.optimizer.ctc_weight < 1
        if self.shares_prefix:
            if self.shards:
                raise ValueError(
                    "compute.share_prefix needs whole weights in each process; set it to false, or launch without "
                    "FSDP or DeepSpeed"
                )
            share_prefixes(model.model.language_model)
        self.writer = BackgroundSave()
        self.to_write: list[Callable[[], None]] = []  # what is left to write of the checkpoint that is being saved
        self.writes_beside = self.args.device.type != "cpu"  # a copy is written while training goes on
        self.add_callback(WaitForSave(self.writer, self.writes_beside, self.timer))
        self.add_callback(OptimizerTime(self.timer))
        if self.args.device.type == "cpu":
            self.add_callback(TrimHeap())
        self.distill_weight = recipe.optimizer.distill_weight
        self.teacher: Teacher | None = None
        if self.distill_weight > 0:
            self.teacher = Teacher(model, recipe.optimizer.distill_temperature, copies=self.shards)
            if recipe.compute.frozen_weights == "bf16":
                self.teacher.hold_in(torch.bfloat16)
        if self.shards and late_parts(recipe.optimizer):
            named = " and ".join(f"optimizer.{part}.start" for part in late_parts(recipe.optimizer))
            raise ValueError(
                f"{named}: a part is frozen for a while, which sharded weights do not allow; set it to 0, or launch "
                "without FSDP or DeepSpeed"
            )
        self.ctc_weight = recipe.optimizer.ctc_weight
        self.alignment: Alignment | None = None
        if self.ctc_weight > 0:
            if self.shards:
                raise ValueError(
                    "optimizer.ctc_weight needs whole weights in each process; launch without FSDP or DeepSpeed"
                )
            self.alignment = alignment_with(model, processor, rows.corpus, rows.collator.encode.pieces)
        self.compiled = should_compile(recipe, self.args.device.type, self.shards)
        if self.compiled:
            compile_layers(model)
        self.flops = StepFlops(model, recipe, len(self.alignment.competing) if self.alignment else 0)
        self.chip = self._chip()
        self.loss_is_scaled_for_ga = self.per_token

    @property
    def unwrapped(self) -> LlasoForConditionalGeneration:
        """The model without the wrappers that accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def shards(self) -> bool:
        """Whether each process holds only its part of the weights between forward passes."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of this process's micro-batches; it draws nothing from the training's random state."""
        args = self.args
        rows = ReadAhead(
            self.rows.corpus,
            self.rows.plan,
            args.max_steps,
            args.process_index,
            args.world_size,
            self.start_step,
            self.recipe.data.speeds,
        )
        return DataLoader(
            RowsAsRead(),
            batch_sampler=rows,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator(),
            worker_init_fn=follow_main_process,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Read the micro-batches of a step."""
        with self.timer.measure(READING):
            return super().get_batch_samples(*args, **kwargs)

    # ---- Loss ----

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one micro-batch forward and backward."""
        late = late_parts_frozen(self.unwrapped, self.recipe.optimizer, self.state.global_step / self.args.max_steps)
        with late, self.timer.measure(BACKWARD):  # the forward pass in it is taken off when the step is recorded
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the cross-entropy of the answer tokens of one micro-batch.

        Returns:
            With token normalization, the sum over this micro-batch divided by the answer tokens of the whole step, of
            all processes; with `paper`, the mean over this micro-batch.
        """
        keep_frozen(self.frozen, self.unwrapped)
        inputs = dict(inputs)
        ids, tasks, skipped = inputs.pop("ids"), inputs.pop("tasks"), inputs.pop("skipped")
        targets = inputs.pop("shift_labels")
        teacher_inputs = {name: inputs.pop(name) for name in list(inputs) if name.startswith("teacher_")}
        transcripts, transcript_sizes = (inputs.pop(name, None) for name in ("transcripts", "transcript_sizes"))
        prefix: SharedPrefix | None = inputs.pop("shared_prefix", None)
        if prefix is not None and self.shares_prefix and is_worth_it(prefix):
            if within_window(self.unwrapped.model.language_model, prefix):
                inputs["shared_prefix"] = prefix
        is_answer = targets != IGNORED
        packed: Packed | dict = inputs.get("packed", {})
        if self.recipe.spec_augment.hides:
            self._hide(inputs, packed)
        if "input_features" not in inputs and "features" not in packed:
            inputs |= self._nothing_to_encode(kept="mm_encoder_outputs" in inputs or "kept" in packed)
        answer_rows = is_answer.nonzero()[:, 0]
        tokens = padded = is_answer.numel()
        if packed:
            answer_rows = members(packed["row_lengths"], is_answer.device)[is_answer[0]]
        else:
            tokens = inputs["attention_mask"].sum()

        with self.timer.measure(LLM):  # the encoder's time in it is taken off when the step is recorded
            if self.ctc_weight == 1:  # the LLM does not run
                outputs, logits = None, None
                audio = self._project(model, inputs)
                losses = audio.new_zeros(int(is_answer.sum()), dtype=torch.float32) + 0 * audio.sum()
            else:
                outputs, logits, losses = self._token_losses(model, inputs, is_answer, targets[is_answer])
                audio = outputs.audio_hidden_states

        if self.teacher is not None and teacher_inputs:
            assert logits is not None
            weight = self.distill_weight
            divergence, taught = self.teacher.divergence(logits, answer_rows, teacher_inputs)
            losses = losses.masked_scatter(taught, (1 - weight) * losses[taught] + weight * divergence)

        aligned_vectors: torch.Tensor | int = 0
        if self.alignment is not None and transcripts is not None:
            weight, aligned = self.ctc_weight, transcript_sizes > 0
            audio_sizes = inputs["input_ids"].eq(self.unwrapped.config.audio_token_id).sum(1)
            of_aligned = aligned.repeat_interleave(audio_sizes)
            aligned_vectors = of_aligned.sum()
            of_rows = torch.zeros(len(ids), device=losses.device)
            of_rows[aligned] = self.alignment.row_losses(
                audio[of_aligned], audio_sizes[aligned], transcripts, transcript_sizes[aligned]
            )
            of_rows = of_rows / is_answer.sum(1).clamp(min=1)  # answer tokens have equal parts of their row's loss
            mixed = (1 - weight) * losses + weight * of_rows[answer_rows]
            losses = torch.where(aligned[answer_rows], mixed, losses)

        row_losses = losses.new_zeros(len(ids)).index_add(0, answer_rows, losses.detach())
        self.step_parts.append(
            {
                "ids": ids,
                "tasks": tasks,
                "skipped": skipped,
                "row_losses": row_losses,
                "row_tokens": answer_rows.bincount(minlength=len(ids)),
                "loss": losses.detach().sum() / max(1, len(losses)),
                "tokens": torch.as_tensor(tokens, device=losses.device),
                "flop": torch.as_tensor(
                    self.flops.of_batch(inputs, is_answer.sum(), teacher_inputs, aligned_vectors), device=losses.device
                ),
                "padded": padded,
            }
        )
        if not self.per_token:
            loss = losses.sum() / max(1, len(losses))
        else:
            assert num_items_in_batch is not None
            # Processes average their gradients, but the tokens are counted over all of them.
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _token_losses(
        self, model: nn.Module, inputs: dict[str, Any], is_answer: torch.Tensor, targets: torch.Tensor
    ) -> tuple[Any, torch.Tensor | None, torch.Tensor]:
        """Compute the loss of every answer token, `(answer tokens,)`.

        More answer tokens than `compute.loss_chunk` go through the LLM's head in chunks, whose logits are computed
        again in the backward pass. A teacher needs all logits, and a sharded head is whole in the forward pass only.

        Returns:
            The model's outputs, the answer tokens' logits unless they were made in chunks, and the losses.
        """
        compute = self.recipe.compute
        together = not compute.answer_only_logits or self.teacher is not None or self.shards
        if together or len(targets) <= compute.loss_chunk:
            keep = {"logits_to_keep": is_answer} if compute.answer_only_logits else {}
            outputs = model(**inputs, **keep, use_cache=False)
            logits = outputs.logits if compute.answer_only_logits else outputs.logits[is_answer]
            return outputs, logits, nn.functional.cross_entropy(logits.float(), targets, reduction="none")

        outputs = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
        hidden = outputs.hidden_states[-1][is_answer]
        with self.accelerator.autocast():
            losses = chunked_losses(self.unwrapped.compute_logits, hidden, targets, compute.loss_chunk)
        return outputs, None, losses

    def _hide(self, inputs: dict[str, Any], packed: Packed | dict) -> None:
        """Hide stretches of a micro-batch's log-mels, as the recipe says; see `spec_augment.py`."""
        lane = self.args.process_index * self.args.gradient_accumulation_steps + len(self.step_parts)
        place = (self.recipe.seed, self.state.global_step, lane)
        generator = torch.Generator().manual_seed(int(_digest(repr(place)), 16) % 2**63)
        windows: list[torch.Tensor] = []
        if "input_features" in inputs:
            inputs["input_features"] = inputs["input_features"].clone()
            frames = inputs["input_features_mask"].sum(1).tolist()
            windows += [window[:, :real] for window, real in zip(inputs["input_features"], frames, strict=True)]
        if "features" in packed:
            packed["features"] = packed["features"].clone()
            starts = starts_of([taken_frames(real) for real in packed["window_frames"]])
            of_windows = zip(starts, packed["window_frames"], strict=True)
            windows += [packed["features"][:, start : start + real] for start, real in of_windows]
        hide_stretches(windows, self.recipe.spec_augment, generator)

    def _project(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the batch's projected audio vectors, row after row, `(audio tokens, width)`."""
        names = ("input_features", "input_features_mask", "mm_encoder_outputs")
        whole = self.unwrapped
        with self.accelerator.autocast():
            return call_through(model, whole, whole.model.get_audio_embeds, *(inputs.get(name) for name in names))

    def _nothing_to_encode(self, kept: bool) -> dict[str, Any]:
        """Return inputs that give no audio tokens, for a batch that has nothing to encode.

        Sharded layers are gathered by all processes together, so the encoder runs in all of them, here on a window
        without a real frame. Otherwise a batch of text alone projects no vectors, so that the projector's gradients
        are zero rather than absent.

        Args:
            kept: whether the batch has audio whose encoder output is kept.
        """
        encoder, device = self.unwrapped.config.audio_config, self.args.device
        if self.shards:
            features = torch.zeros(1, encoder.num_mel_bins, 2, device=device)
            return {"input_features": features, "input_features_mask": torch.zeros(1, 2, device=device)}
        if kept:
            return {}
        vectors = torch.zeros(0, 1, encoder.d_model, device=device)
        return {"mm_encoder_outputs": {"audio": LlasoAudioOutput(last_hidden_state=vectors)}}

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | None:
        """Count the answer tokens of a whole step, over all micro-batches and processes; not counted under `paper`."""
        if not self.per_token or not batch_samples:
            return None
        count = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in batch_samples]).sum()
        return self.accelerator.reduce(count.to(device), reduction="sum").clamp(min=1)

    # ---- The record of a step ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Runs after gradient accumulation and before the optimizer step; divergence is checked here."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()  # FSDP2 leaves each process its part of the sum
        self._record_step(None if grad_norm is None else float(grad_norm))
        return grad_norm

    def _record_step(self, grad_norm: float | None) -> None:
        """Sum a step's numbers over its micro-batches and all processes, check them, and write the step's record."""
        parts, self.step_parts = self.step_parts, []
        everyone = gathered(_summary(parts) | {"stop": self.asked_to_stop()})
        total = {name: sum(one[name] for one in everyone) for name in SUMS}
        self.all_stop = any(one["stop"] for one in everyone)
        if not self.per_token:
            loss = total["micro_losses"] / total["micro_batches"]
        else:
            loss = total["loss_sum"] / max(1.0, total["answer_tokens"])
        self._check(loss, grad_norm, parts)
        self._check_rows(total["answer_tokens"])
        tasks: dict[str, list[float]] = {}
        for task, loss_sum, tokens in (entry for one in everyone for entry in one["tasks"]):
            entry = tasks.setdefault(task, [0.0, 0])
            entry[0] += loss_sum
            entry[1] += tokens
        micro_batches = sorted(digest for one in everyone for digest in one["rows"])
        seconds = self.timer.take()
        seconds[BACKWARD] = round(seconds.get(BACKWARD, 0.0) - seconds.get(LLM, 0.0), 4)
        seconds[LLM] = round(seconds.get(LLM, 0.0) - seconds.get(ENCODER, 0.0), 4)
        self.history.add(
            {
                "kind": "step",
                "step": self.state.global_step + 1,
                "loss": loss,
                "grad_norm": grad_norm,
                "learning_rate": self._get_learning_rate(),
                **{name: int(total[name]) for name in ("answer_tokens", "tokens", "padded", "skipped")},
                "rows": _digest("".join(micro_batches)),
                "tasks": tasks,
                "seconds": seconds,
                **self._speed(total["flop"], seconds),
            }
        )

    def _check_rows(self, answer_tokens: float) -> None:
        """Raise a ValueError if no row could be read for many steps, or for the whole of a short run."""
        self.steps_without_rows = 0 if answer_tokens else self.steps_without_rows + 1
        step = self.state.global_step + 1
        is_whole_run = step == self.args.max_steps and self.steps_without_rows == step - self.start_step
        if self.steps_without_rows >= STEPS_WITHOUT_ROWS or (self.steps_without_rows and is_whole_run):
            raise ValueError(
                f"step {step}: for {self.steps_without_rows} steps there was no row that can be learned from; the "
                "warnings above say what is wrong with them. Mend the corpus or the recipe: data.bad_rows=skip is for "
                "single rows"
            )

    def _speed(self, flop: float, seconds: dict[str, float]) -> dict[str, float]:
        """Return a step's arithmetic, its rate, and the rate's share of the chips' peak if that is known."""
        if not self.flops.known:
            return {}
        rate = flop / max(stepping(seconds), 1e-9)
        speed = {"flop": int(flop), "flop_per_second": rate}
        if self.chip is not None:
            speed["share_of_peak"] = rate / self.chip[1]
        return speed

    def _chip(self) -> tuple[str, float] | None:
        """Return the name of the chips and the FLOP/s that all of them can do; None if that is not known."""
        chip = peak_of(chip_name(self.args.device))
        if chip is None or self.recipe.compute.precision != "bf16":  # whose peak the table has
            return None
        count = self.args.world_size
        return (chip[0] if count == 1 else f"{count} x {chip[0]}"), count * chip[1]

    def _check(self, loss: float, grad_norm: float | None, parts: list[dict[str, Any]]) -> None:
        """Raise `TrainingDiverged` if the loss or the gradient is not finite, or the loss exploded."""
        step = self.state.global_step + 1
        if math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)):
            if len(self.history.recent) < 2 * CALM_STEPS:
                return
            usual, first = self.history.median_loss(CALM_STEPS), max(self.history.first_losses)
            if loss <= self.recipe.watch.max_loss_jump * usual or loss <= first:
                return
            what = f"the loss jumped to {loss:.3g}, from {usual:.3g}"
        else:
            norm = "none" if grad_norm is None else f"{grad_norm:.3g}"
            what = f"the loss is {loss:.3g} and the gradient norm {norm}"
        rows = [
            (row_loss / max(1, tokens), row_id)
            for part in parts
            for row_loss, tokens, row_id in zip(
                part["row_losses"].tolist(), part["row_tokens"].tolist(), part["ids"], strict=True
            )
        ]
        rows = [row for of_process in gathered(rows) for row in of_process]
        broken = [row_id for row_loss, row_id in rows if not math.isfinite(row_loss)]
        rows.sort(key=lambda item: -item[0] if math.isfinite(item[0]) else -math.inf)
        named = broken or [row_id for _, row_id in rows]
        raise TrainingDiverged(
            f"step {step}: {what}. Rows of this step, worst first: {', '.join(named[:NAMED_ROWS])}. Nothing of it is "
            "saved, and the last checkpoint is kept. To go on from it, lower optimizer.learning_rate or raise "
            "optimizer.warmup_ratio and name it after --change; to train without these rows, start again in another "
            "folder (--set out=…)"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to what reporters get: the exact mean loss, by task too, and the padding share."""
        if "loss" in logs:
            window = self.args.logging_steps
            steps = self.history.steps(int(window))
            logs["loss"] = sum(record["loss"] for record in steps) / len(steps)
            logs["padding"] = 1 - sum(r["tokens"] for r in steps) / sum(r["padded"] for r in steps)
            logs |= {f"loss_{task}": loss for task, loss in self.history.task_losses(int(window)).items()}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: `StepFlops` counts in its place."""
        return 0

    # ---- Optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW, with a group for each part if a part has a learning rate or weight decay of its own."""
        if self.optimizer is None and has_own_rates(self.recipe.optimizer):
            decayed = self.get_decay_parameter_names(self.unwrapped)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.unwrapped)
            self.optimizer = kind(parameter_groups(self.unwrapped, self.recipe.optimizer, decayed), **settings)
        return super().create_optimizer(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both, with the learning rates and the schedule of the recipe, which may have changed on resume."""
        assert self.optimizer is not None
        rates = [group.get("initial_lr", 0.0) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self.is_deepspeed_enabled:
            set_learning_rates(self.optimizer, self.lr_scheduler, rates)

    def detach(self) -> None:
        """Take this trainer's hooks off the model."""
        self.timer.unwatch()
        if self.packing is not None:
            self.packing.remove()

    # ---- Checkpoints ----

    @functools.cached_property
    def frozen_digests(self) -> dict[str, str]:
        """The digest of each part's frozen weights."""
        return frozen_digests(self.unwrapped, self.learned)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.recipe.watch.save_whole or self.shards:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            assert output_dir is not None
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            learned = {name: p for name, p in self.unwrapped.named_parameters() if name in self.learned}
            learned = on_host(learned, copies=self.writes_beside)
            self.to_write.append(lambda: save_trainable(learned, folder, self.frozen_digests, self.sources))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.optimizer is not None and self.lr_scheduler is not None
            state = on_host(self.optimizer.state_dict(), copies=self.writes_beside)
            self.to_write.append(lambda: torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME)))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if (folder / WEIGHTS).exists():
            load_trainable(self.unwrapped, folder, self.frozen_digests)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, and mark it complete only after every file is on disk.

        The large files are written beside the training (`watch.save_beside`), unless weights are sharded.

        Raises:
            OSError: it, or the one before, cannot be written, on a full disk say; earlier ones are kept.
        """
        folder = self.out / f"checkpoint-{self.state.global_step}"
        step, keep = self.state.global_step, self.recipe.watch.keep
        with self.timer.measure(SAVING):
            self.writer.wait()
            with told(folder):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            jobs, self.to_write = self.to_write, []
            if not self.is_world_process_zero():
                return

            def finish() -> None:
                with told(folder):
                    for job in jobs:
                        job()
                    mark_complete(folder, step, keep)

            self.writer.start(finish)
            if not self.recipe.watch.save_beside:
                self.writer.wait()


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn what a full disk causes into a plain error, and remove the checkpoint that was being written.

    Raises:
        OSError: the message names the folder, the cause and the remedy.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        if is_peer_lost(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            f"checkpoint {folder} could not be written: {error}. Earlier checkpoints are kept; make room and run "
            "the same command again"
        ) from error


def training_arguments(recipe: Recipe, steps: int) -> TrainingArguments:
    """Translate a recipe into transformers' arguments."""
    optimizer, compute, watch = recipe.optimizer, recipe.compute, recipe.watch
    reporters = list(watch.reporters)
    if reporters == ["auto"]:
        reporters = ["trackio"] if importlib.util.find_spec("trackio") else ["none"]
    arguments = TrainingArguments(
        output_dir=recipe.out,
        per_device_train_batch_size=recipe.batch.at_once,
        gradient_accumulation_steps=recipe.batch.accumulation,
        max_steps=steps,
        learning_rate=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_ratio,
        lr_scheduler_type=optimizer.schedule,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        max_grad_norm=optimizer.clip,
        bf16=compute.precision == "bf16",
        **checkpointing_arguments(compute.gradient_checkpointing),
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
        # A batch of text alone does not use the encoder, and a part that learns later is frozen at first.
        ddp_find_unused_parameters="encoder" in recipe.train or bool(late_parts(optimizer)),
        logging_nan_inf_filter=False,  # a loss that is no number stops the run instead
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        logger.warning("of %d GPUs one is used; `accelerate launch` takes them all", arguments.n_gpu)
        arguments._n_gpu = 1  # otherwise the Trainer would use DataParallel over all visible GPUs
    return arguments


class OptimizerTime(TrainerCallback):
    """Measures the optimizer's step; the first step begins when the training does."""

    def __init__(self, timer: StepTimer) -> None:
        self.timer = timer
        self.start: Mark = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.timer.take()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.start = self.timer.mark()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.timer.spans.append((OPTIMIZER, self.start, self.timer.mark()))


def _summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one process's part of the record of a step, from its micro-batches, as plain numbers."""
    sums = torch.stack(
        [torch.stack([part[entry].sum().double() for part in parts]).sum() for entry in SUMMED_TENSORS.values()]
    )
    return dict(zip(SUMMED_TENSORS, sums.tolist(), strict=True)) | {
        "padded": sum(part["padded"] for part in parts),
        "skipped": sum(len(part["skipped"]) for part in parts),
        "micro_batches": len(parts),
        "tasks": [
            entry
            for part in parts
            for entry in zip(part["tasks"], part["row_losses"].tolist(), part["row_tokens"].tolist(), strict=True)
        ],
        "rows": [_digest("\n".join(part["ids"])) for part in parts],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def export(trainer: LlasoTrainer, folder: Path) -> None:
    """Write model and processor as an ordinary checkpoint: whole if they were sharded, adapters merged.

    Raises:
        OSError: they cannot be written; the last checkpoint is still there.
    """
    accelerator, model = trainer.accelerator, trainer.unwrapped
    if trainer.shards:
        state = accelerator.get_state_dict(trainer.model_wrapped)
        unset_hf_deepspeed_config()  # or the whole model made below would be split over the processes as well
        if trainer.is_world_process_zero():
            generation_config = model.generation_config
            with torch.device("meta"):
                model = LlasoForConditionalGeneration(model.config)
                add_adapters(model, trainer.recipe)
            missing, unexpected = model.load_state_dict(
                state, strict=False, assign=True
            )  # in the types in which it was trained
            assert not unexpected and set(missing) <= set(model.all_tied_weights_keys), (missing, unexpected)
            model.tie_weights()
            model.generation_config = generation_config
    if trainer.is_world_process_zero():
        if trainer.recipe.lora.rank or trainer.recipe.encoder_lora.rank:
            merge_lora(model)
        try:
            model.save_pretrained(folder)
            model.config.dtype = torch.float32  # what from_pretrained loads: no learned weight is rounded unasked
            model.config.save_pretrained(folder)
            trainer.processor.save_pretrained(folder)
        except WRITE_ERRORS as error:
            raise OSError(
                f"the model could not be written to {folder}: {error}. The last checkpoint is kept; make room and run "
                "the same command again"
            ) from error
    accelerator.wait_for_everyone()
