"""Opens the data of a run, as its recipe says: corpus, steps, encoder cache and collator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from llaso.progress import Report, progress_report
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import Recipe
from .batch_plan import BatchRule, steps_per_epoch
from .collator import Collator, RowEncoder, TeacherCollator
from .corpora import Corpus, NumberedCorpus, open_corpus, open_held_out
from .encoder_cache import GIGABYTE, EncoderCache, fill, fingerprint
from .row_lengths import Row

HELD_OUT_TASK = "ASR"
ENCODER_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class TrainingRows:
    """The data of a run.

    Attributes:
        corpus: rows to train on, numbered or streamed.
        held_out: rows to transcribe while training.
        rule: how rows become micro-batches.
        epoch_steps: optimizer steps of one epoch.
        steps: optimizer steps of the run.
        collator: turns rows into a batch.
        cache: the frozen encoder's output, if the recipe keeps it.
    """

    corpus: Corpus
    held_out: list[Row]
    rule: BatchRule
    epoch_steps: int
    steps: int
    collator: Collator
    cache: EncoderCache | None

    def fill_cache(
        self,
        held_out: Sequence[Row],
        model: LlasoForConditionalGeneration,
        precision: Callable[[], AbstractContextManager],
        device: torch.device,
        report: Report,
    ) -> None:
        """Encode every clip of training and of `held_out` that the cache does not hold; see `encoder_cache.fill`."""
        if self.cache is None or not isinstance(self.corpus, NumberedCorpus):
            return
        order = self.corpus.lengths.argsort(kind="stable").tolist()
        total = len(held_out) + len(order)
        show = progress_report("encoding rows", report, ENCODER_REPORT_SECONDS)
        rows = itertools.chain(held_out, map(self.corpus.__getitem__, order))
        processor = self.collator.encode.processor
        model.eval()
        fill(self.cache, model, processor, rows, precision, device, lambda done: show(done, total), report)
        report(f"encoder output of {len(self.cache.entries):,} clips kept: {self.cache.bytes_used / 1e6:,.0f} MB")


def set_up_rows(
    recipe: Recipe, model: LlasoForConditionalGeneration, processor: LlasoProcessor, world: int
) -> TrainingRows:
    """Open the corpus of a recipe, plan its steps for `world` processes and open its encoder cache.

    Raises:
        ValueError: a column is missing, or no row passes the recipe's filters.
        FileNotFoundError: there is no such corpus.
    """
    data = recipe.data
    corpus = open_corpus(data, recipe.seed, processor, recipe.compute.workers)
    rule = batch_rule(recipe, world)
    epoch_steps, steps = count_steps(recipe, corpus, rule)
    cache = open_cache(recipe, model, processor)
    weight, packing = recipe.optimizer.ctc_weight, recipe.batch.packing
    encode = RowEncoder(processor, data.max_length, cache, "no" if weight == 0 else "all" if weight == 1 else "some")
    teacher = TeacherCollator(encode, packing) if recipe.optimizer.distill_weight > 0 else None
    held_out = open_held_out(data, HELD_OUT_TASK, max(recipe.watch.final_rows, recipe.watch.evaluate_rows))
    return TrainingRows(
        corpus, held_out, rule, epoch_steps, steps, Collator(encode, data.bad_rows == "skip", teacher, packing), cache
    )


def batch_rule(recipe: Recipe, world: int) -> BatchRule:
    """Return the rule by which this recipe's rows become micro-batches on `world` processes."""
    batch = recipe.batch
    return BatchRule(
        batch.per_device,
        batch.max_tokens,
        batch.group_by_length,
        batch.window,
        batch.accumulation * world,
        batch.packing,
    )


def count_steps(recipe: Recipe, corpus: Corpus, rule: BatchRule) -> tuple[int, int]:
    """Count the optimizer steps of one epoch and of the run; a stream's run counts as one epoch."""
    if recipe.data.streaming:
        return recipe.optimizer.max_steps, recipe.optimizer.max_steps
    epoch_steps = steps_per_epoch(corpus.windows(rule, recipe.seed), rule, recipe.seed)
    return epoch_steps, recipe.optimizer.max_steps or max(1, round(recipe.optimizer.epochs * epoch_steps))


def open_cache(recipe: Recipe, model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> EncoderCache | None:
    """Return the cache of this recipe's frozen encoder, or None if the recipe keeps none."""
    if (folder := recipe.encoder_cache_folder) is None:
        return None
    return EncoderCache(
        folder,
        fingerprint(model, processor, recipe.compute.precision),
        model.config.audio_config.d_model,
        int(recipe.compute.encoder_cache_gb * GIGABYTE),
    )
