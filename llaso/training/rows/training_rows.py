"""Opens the data of a run, as its recipe says: corpus, steps, encoder cache and collator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from llaso.alignment.short_pieces import ShortPieces
from llaso.progress import Report, progress_report
from llaso_common.schema import Row
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import Recipe
from .batch_plan import BatchRule, Plan
from .collator import Collator, RowEncoder, TeacherCollator
from .corpora import Corpus, open_corpus, open_held_out
from .encoder_cache import GIGABYTE, EncoderCache, fill, fingerprint

HELD_OUT_TASK = "ASR"
ENCODER_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class TrainingRows:
    """The data of a run.

    Attributes:
        corpus: rows to train on.
        plan: of their steps.
        held_out: rows to transcribe while training.
        steps: optimizer steps of the run.
        collator: turns rows into a batch.
        cache: the frozen encoder's output, if the recipe keeps it.
    """

    corpus: Corpus
    plan: Plan
    held_out: list[Row]
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
        if self.cache is None:
            return
        total = len(held_out) + self.corpus.rows
        show = progress_report("encoding rows", report, ENCODER_REPORT_SECONDS)
        rows = itertools.chain(held_out, self.corpus.by_length())
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
    corpus = open_corpus(data, processor, recipe.compute.workers)
    plan = plan_of(recipe, corpus, world)
    cache = open_cache(recipe, model, processor)
    held_out = open_held_out(data, HELD_OUT_TASK, max(recipe.watch.final_rows, recipe.watch.evaluate_rows))
    collator = collator_for(recipe, processor, cache)
    return TrainingRows(corpus, plan, held_out, count_steps(recipe, plan), collator, cache)


def collator_for(recipe: Recipe, processor: LlasoProcessor, cache: EncoderCache | None) -> Collator:
    """Return the collator that a recipe's losses and batches need."""
    data, weight, packing = recipe.data, recipe.optimizer.ctc_weight, recipe.batch.packing
    align: Literal["no", "some", "all"] = "no" if weight == 0 else "all" if weight == 1 else "some"
    encode = RowEncoder(processor, data.max_length, cache, align, pieces_of(recipe, processor))
    teacher = TeacherCollator(encode, packing) if recipe.optimizer.distill_weight > 0 else None
    return Collator(encode, data.bad_rows == "skip", teacher, packing, recipe.compute.share_prefix)


def pieces_of(recipe: Recipe, processor: LlasoProcessor) -> ShortPieces | None:
    """Return what splits the transcripts that a recipe aligns, or None if their tokens stay whole.

    Raises:
        ValueError: the tokenizer has no merges.
    """
    merges = recipe.optimizer.ctc_merges
    return None if merges is None else ShortPieces(processor.tokenizer, merges)


def plan_of(recipe: Recipe, corpus: Corpus, world: int) -> Plan:
    """Plan the steps of this recipe on `world` processes.

    Raises:
        ValueError: there are too few rows for a single step.
    """
    batch = recipe.batch
    rule = BatchRule(
        batch.at_once,
        batch.max_tokens,
        batch.group_by_length,
        batch.window,
        batch.accumulation * world,
        batch.packing,
    )
    return Plan(corpus.row_groups, rule, recipe.seed)


def count_steps(recipe: Recipe, plan: Plan) -> int:
    """Count the optimizer steps of a run."""
    return recipe.optimizer.max_steps or max(1, round(recipe.optimizer.epochs * plan.epoch_steps()))


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
