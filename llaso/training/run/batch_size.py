"""Finds how many rows a micro-batch may have on this device: `batch.per_device: auto`.

The longest row of the corpus is trained on once, and what that takes is measured; nothing of it is kept. On a GPU the
number is searched for, with out-of-memory errors as its bound. On the CPU, where a machine that runs out of memory
kills processes, the bytes of one and of two rows are counted operator by operator, and the rest follows. All processes
take the smallest number that any of them found.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import torch
from torch import nn

from llaso.alignment.alignment import is_transcribed
from llaso.progress import Report
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import BatchChoice, Recipe
from ..rows.collator import IGNORED
from ..rows.corpora import TrainingRow, open_corpus
from ..rows.training_rows import TrainingRows, collator_for, plan_of
from .distributed import gathered
from .history import HISTORY, History
from .model_setup import BYTES_GRADIENT, BYTES_MOMENTS
from .operator_counter import OperatorCounter
from .recomputation import checkpoint_layers
from .trainer import LlasoTrainer

FREE_SHARE = 0.8
"""Share of the free memory that a run on the CPU takes if the recipe names no limit."""
HEAP_SHARE = 1.3
"""Bytes that the C library's heap holds for each byte of live tensors, at the peak, when shapes vary."""
SPARE_SHARE = 0.05
"""Share of a GPU's memory left for fragments."""
LONGEST_TRIED = 16
"""Rows looked at for one that can be read."""


@dataclass(frozen=True)
class Fit:
    """What was measured.

    Attributes:
        rows: of the greatest length that fit at once.
        length: that length in tokens.
        words: how it was found.
    """

    rows: int
    length: int
    words: str


def measured_batch(
    recipe: Recipe,
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    frozen: list[nn.Module],
    processes: int,
    report: Report,
) -> BatchChoice:
    """Measure what fits on this device, and choose the largest micro-batch that divides the recipe's step.

    Raises:
        ValueError: the weights are sharded, a single row does not fit, or the step cannot be divided among the
            processes.
    """
    batch = recipe.batch
    whole, name = (batch.rows, "rows") if batch.rows else (batch.tokens, "tokens")
    share, rest = divmod(whole, processes)
    if rest:
        raise ValueError(f"recipe: batch.{name}={whole:,} cannot be divided among {processes} processes")
    one_row = dataclasses.replace(batch, per_device=1, accumulation=1, rows=0, tokens=0, max_tokens=0)
    compute = dataclasses.replace(recipe.compute, compile=False)  # not for a trial: compiled layers take no more
    probe = Probe(dataclasses.replace(recipe, batch=one_row, compute=compute), model, processor, frozen)
    most = share if batch.rows else max(1, share // probe.length)
    found = probe.on_gpu(most) if probe.device.type == "cuda" else probe.on_cpu(most)
    probe.trainer.detach()
    rows = min(gathered(found.rows))
    if not rows:
        raise ValueError(
            f"batch.per_device: auto: the longest row, {found.length:,} tokens, does not fit: {found.words}"
        )
    if batch.rows:
        chosen = largest_divisor(share, rows)
        choice = dataclasses.replace(batch, per_device=chosen)
    else:
        micro_batches = -(-share // (rows * found.length))
        tokens = share // micro_batches
        chosen = max(1, round(2 * tokens / probe.mean_length))  # rows at most; short ones fill it otherwise
        choice = dataclasses.replace(
            batch, per_device=chosen, max_tokens=tokens, tokens=tokens * micro_batches * processes
        )
    report(
        f"batch.per_device: auto is {chosen:,} rows"
        + ("" if batch.rows else f" of {choice.max_tokens:,} tokens together")
        + f": of the longest, {found.length:,} tokens, {rows:,} fit ({found.words})"
    )
    return choice


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of a number that does not exceed a limit."""
    return next(one for one in range(min(number, at_most), 0, -1) if number % one == 0)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to `most` that fits, by doubling and then halving the gap; 0 if none does."""
    good, bad = 0, most + 1
    trial = 1
    while bad - good > 1:
        if fits(trial):
            good = trial
            trial = min(2 * trial, bad - 1) if bad > most else (good + bad) // 2
        else:
            bad = trial
            trial = (good + bad) // 2
    return good


class Probe:
    """Trains on copies of the longest row that can be read, without changing model or random state."""

    def __init__(
        self,
        recipe: Recipe,
        model: LlasoForConditionalGeneration,
        processor: LlasoProcessor,
        frozen: list[nn.Module],
    ) -> None:
        corpus = open_corpus(recipe.data, processor, recipe.compute.workers)
        self.collator = collator_for(recipe, processor, cache=None)
        rows = TrainingRows(corpus, plan_of(recipe, corpus, world=1), [], 1, self.collator, None)
        history = History(Path(recipe.out) / HISTORY, write=False)
        self.trainer = LlasoTrainer(model, recipe, processor, rows, frozen, history)
        if self.trainer.shards:
            raise ValueError("batch.per_device: auto cannot measure sharded weights; name a number")
        self.device = self.trainer.args.device
        self.model = model
        self.mean_length = float(np.mean(corpus.lengths))
        for number in np.argsort(corpus.lengths)[::-1][:LONGEST_TRIED].tolist():
            row = cast(TrainingRow, corpus[number])
            if is_transcribed(row["task"], row["modality"]):
                row["speed"] = recipe.data.slowest_speed
            try:
                self.collator.encode(row)
            except ValueError:
                continue  # training names it, or counts it as skipped
            self.row, self.length = row, int(corpus.lengths[number])
            break
        else:
            raise ValueError(f"batch.per_device: auto: none of the {LONGEST_TRIED} longest rows can be read")
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def step(self, rows: int) -> None:
        """Run so many copies of the row forward and backward, and drop the gradients."""
        batch = self.trainer._prepare_inputs(self.collator([self.row] * rows))
        checkpoint_layers(self.model, self.trainer.recipe.compute.gradient_checkpointing)
        self.model.train()
        # Counted here alone: the trainer would ask the other processes, which may try other numbers of rows.
        count = (batch["shift_labels"] != IGNORED).sum().clamp(min=1)
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), self.trainer.accelerator.autocast():
                loss = self.trainer.compute_loss(self.model, batch, num_items_in_batch=count)
            assert isinstance(loss, torch.Tensor)
            loss.backward()
        finally:
            self.model.zero_grad(set_to_none=True)
            self.trainer.step_parts.clear()
            self.trainer.timer.spans.clear()

    def on_cpu(self, most: int) -> Fit:
        """Count the bytes of one and of two rows, and reckon how many fit into the memory that is free."""
        peaks = []
        for rows in (1, 2):
            counter = OperatorCounter(self.model)
            with counter.on("step"):
                self.step(rows)
            peaks.append(counter.peak.total())
        a_row = max(1, peaks[1] - peaks[0])
        limit = self.trainer.recipe.compute.memory_gb * 1e9
        here = psutil.Process().memory_info().rss
        free = limit - here if limit else FREE_SHARE * psutil.virtual_memory().available
        left = free - BYTES_MOMENTS * self.trainable - HEAP_SHARE * (peaks[0] - a_row)
        fitting = int(left // (HEAP_SHARE * a_row))
        words = f"{a_row / 1e6:,.0f} MB each, {max(0.0, free) / 1e9:.1f} GB free"
        return Fit(max(0, min(most, fitting)), self.length, words)

    def on_gpu(self, most: int) -> Fit:
        """Search for the largest number of rows that a GPU holds, beside the optimizer's states."""
        of_others = (BYTES_MOMENTS + (BYTES_GRADIENT if self.trainer.args.world_size > 1 else 0)) * self.trainable
        total = torch.cuda.get_device_properties(self.device).total_memory
        reserve = of_others + int(SPARE_SHARE * total)

        def fits(rows: int) -> bool:
            gc.collect()
            torch.cuda.empty_cache()
            try:
                held = torch.empty(reserve, dtype=torch.uint8, device=self.device)
                self.step(rows)
                del held
                return True
            except torch.OutOfMemoryError:
                return False

        rows = largest_that_fits(fits, most)
        gc.collect()
        torch.cuda.empty_cache()
        return Fit(rows, self.length, f"on {total / 1e9:.0f} GB")
