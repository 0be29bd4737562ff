"""Estimates what a recipe would cost, without weights, data or network: parameters, steps, tokens, memory, FLOPs.

The network's tensors have shapes but no values. One micro-batch of mean rows goes through it forward and backward, and
the FLOPs of every operator and the bytes of every tensor are counted (`flops.py`). Rows and lengths are read if the
corpus is on this disk, and taken from the recipe if it is not.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedConfig

from llaso_common.audio import MEL_FRAMES_PER_SECOND
from modeling_llaso.configuration_llaso import LLAMA_3_2_3B, WHISPER_LARGE_V3, LlasoConfig, count_audio_tokens
from modeling_llaso.conversion import new_processor
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import BatchChoice, ModelChoice, Recipe, load_recipe
from ..rows.batch_plan import padding_share
from ..rows.corpora import open_corpus
from ..rows.training_rows import plan_of
from ..run.model_setup import (
    BYTES_GRADIENT,
    BYTES_MOMENTS,
    NORM_IN_FP32,
    PartReport,
    describe_parts,
    keep_frozen,
    report_parts,
    set_up_parts,
)
from ..run.packed_attention import set_packed_attention
from ..run.recomputation import checkpoint_layers
from .flops import ENCODER, BatchShape, OperatorCounter, count_micro_batch

WHISPER_BASE = {
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
}
SMOLLM2_135M = {
    "vocab_size": 49156,  # 49,152 and the four tags of audio
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
KNOWN_ENCODERS = {"openai/whisper-large-v3": WHISPER_LARGE_V3, "openai/whisper-base": WHISPER_BASE}
KNOWN_LLMS = {
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA_3_2_3B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
}
"""Backbones whose sizes are known here, so that a dry run of the released recipes needs no download."""

ANSWER_SHARE = 0.4
"""Share of a row's text that is the answer, for which logits are computed."""
GIB = 2**30


@dataclass(frozen=True)
class MeanRows:
    """The size of a corpus and of its mean row.

    Attributes:
        count: number of rows of an epoch.
        text: mean number of tokens of a row that are not audio.
        windows: mean number of audio windows of a row.
        frames: mel frames of a window.
        padding: share of what the LLM computes that is padding; None if no corpus is at hand.
        steps: optimizer steps of an epoch.
    """

    count: int
    text: float
    windows: float
    frames: int
    padding: float | None
    steps: int


@dataclass(frozen=True)
class RunCost:
    """What a run would cost.

    Attributes:
        network: the folder, Hub id or recipe that the network's sizes come from.
        parts: parameters of each part of the network, trainable or not.
        rows: number of rows of the corpus.
        tokens: of one epoch, after audio expansion, padding left out.
        padding: share of what the LLM computes that is padding; None if no corpus is at hand.
        steps: number of optimizer steps of the run.
        batch: rows of one step, all processes together.
        memory: bytes on one device by purpose, unsharded, at the peak.
        flops: number for the whole run, padding left out.
        auto: whether the rows of a micro-batch are still to be measured; `memory` is then that of a single row.
    """

    network: str
    parts: list[PartReport]
    rows: int
    tokens: int
    padding: float | None
    steps: int
    batch: int
    memory: dict[str, float]
    flops: float
    auto: bool = False

    @property
    def measured(self) -> bool:
        """Whether rows and tokens were read from the corpus."""
        return self.padding is not None

    def lines(self) -> list[str]:
        """Return the lines that `llaso train --dry-run` prints."""
        total = sum(part.parameters for part in self.parts)
        trainable = sum(part.trainable for part in self.parts)
        source = "read from the corpus" if self.measured else "as the recipe says; the corpus is not at hand"
        lines = [
            f"sizes of {self.network}",
            *describe_parts(self.parts),
            f"{'in all':<10}{total:>15,} parameters   {trainable:,} train",
            "",
        ]
        lines.append(f"rows            {self.rows:,} ({source})")
        lines.append(f"tokens          {self.tokens:,} an epoch, {self.tokens / max(1, self.rows):,.0f} a row")
        if self.padding is not None and not self.auto:
            lines.append(f"padding         {self.padding:.1%} of what the LLM computes")
        lines.append(f"effective batch {self.batch:,} rows")
        lines.append(f"steps           {self.steps:,}")
        lines.append(f"arithmetic      {self.flops:.3g} FLOP (estimate)")
        lines.append(f"memory          {sum(self.memory.values()) / GIB:.1f} GiB a device, unsharded (estimate):")
        if self.auto:
            lines.append("                with one row at once; batch.per_device=auto takes as many as fit")
        lines += [f"                {size / GIB:8.2f} GiB {purpose}" for purpose, size in self.memory.items() if size]
        return lines


def dry_run(recipe: str | Path | Recipe, overrides: Iterable[str] = ()) -> RunCost:
    """Estimate what a recipe would cost.

    Raises:
        ValueError: a mistake in the recipe, or a backbone whose sizes are neither known nor on this disk.
    """
    settings = load_recipe(recipe, overrides)
    config = config_of(settings)
    world = int(os.environ.get("WORLD_SIZE", 1))
    auto = settings.batch.per_device == "auto"
    settings = replace(settings, batch=_batch_to_weigh(settings.batch, world))
    rows = rows_of(settings, config, world)
    steps = settings.optimizer.max_steps or max(1, round(settings.optimizer.epochs * rows.steps))
    a_row = rows.text + rows.windows * count_audio_tokens(rows.frames, config.projector_stride)
    at_once = settings.batch.at_once
    if settings.batch.max_tokens:
        at_once = max(1, min(at_once, int(settings.batch.max_tokens // a_row)))
    text = round(rows.text)
    weighed = 1 if auto else at_once
    windows = max(1, round(weighed * rows.windows)) if rows.windows else 0
    answers = max(1, round(ANSWER_SHARE * text))
    shape = BatchShape(weighed, text, answers, windows, rows.frames, settings.batch.packing)
    parts, counter = weigh(settings, config, shape)

    batch = at_once * settings.batch.accumulation * world
    seen = steps * batch
    encoded = seen if settings.encoder_cache_folder is None else min(seen, rows.count)
    flops = dict(counter.flops)
    encoder_flops = flops.pop(ENCODER, 0)
    trainable = sum(part.trainable for part in parts)
    llm = next(part for part in parts if part.name == "llm")
    teaches = settings.optimizer.distill_weight > 0 and llm.trainable > 0  # a copy does; a frozen LLM itself does
    teacher_width = 2 if settings.compute.frozen_weights == "bf16" else 4
    return RunCost(
        network=_network(settings.model),
        parts=parts,
        rows=rows.count,
        tokens=round(rows.count * a_row),
        padding=rows.padding,
        steps=steps,
        batch=batch,
        memory={
            "weights": sum(part.weight_bytes for part in parts),
            "gradients": BYTES_GRADIENT * trainable,
            "Adam's moments": BYTES_MOMENTS * trainable,
            "the teacher's weights": teacher_width * llm.parameters if teaches else 0,
            **counter.peak,
        },
        flops=(seen * sum(flops.values()) + encoded * encoder_flops) / weighed,
        auto=auto,
    )


def weigh(recipe: Recipe, config: LlasoConfig, shape: BatchShape) -> tuple[list[PartReport], OperatorCounter]:
    """Build the recipe's network from shapes; count its parameters, and the FLOPs and memory of one micro-batch."""
    with torch.device("meta"):
        model = LlasoForConditionalGeneration(config).float()  # as in training, whatever type its folder holds
        frozen = set_up_parts(model, recipe)
    if recipe.compute.attention == "eager":  # the others need as little memory as PyTorch's own
        model.set_attn_implementation("eager")
    if recipe.batch.packing:
        for part in (model.model.audio_tower, model.model.language_model):
            set_packed_attention(part)
    model.train()
    checkpoint_layers(model, recipe.compute.gradient_checkpointing)
    keep_frozen(frozen, model)
    parts = report_parts(model)
    compute = recipe.compute
    chunked = compute.answer_only_logits and recipe.optimizer.distill_weight == 0  # a teacher needs all logits
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NORM_IN_FP32)
        _onto_fake_cpu(model)
        counter = count_micro_batch(
            model,
            shape,
            compute.precision == "bf16",
            compute.answer_only_logits,
            compute.loss_chunk if chunked else 0,
            llm_runs=recipe.optimizer.ctc_weight < 1,
        )
    return parts, counter


def _batch_to_weigh(batch: BatchChoice, world: int) -> BatchChoice:
    """Return a recipe's batches in numbers; what `auto` is to measure is one row, or all of a step's tokens."""
    if batch.per_device != "auto":
        return batch.on(world)
    if batch.rows:
        return replace(batch, per_device=1).on(world)
    tokens = batch.tokens // world
    return replace(batch, per_device=batch.tokens, max_tokens=tokens, tokens=tokens * world).on(world)


def rows_of(recipe: Recipe, config: LlasoConfig, world: int) -> MeanRows:
    """Compute the means of the recipe's corpus, which is read if it is at hand.

    Raises:
        ValueError: it is not at hand, and the recipe does not say what it holds.
    """
    data, full = recipe.data, config.audio_padding == "full"
    processor = _processor_at_hand(recipe, config)
    tail = (processor.audio_tail if processor else recipe.model.audio_tail) or 0.0
    if Path(data.path).exists():
        corpus = open_corpus(data, processor, recipe.compute.workers)
        plan = plan_of(recipe, corpus, world)
        planned = list(plan.epoch(0))
        lengths = corpus.lengths[np.concatenate(list(itertools.chain.from_iterable(planned)))]
        seconds = corpus.seconds()
        cut = np.ceil(seconds * MEL_FRAMES_PER_SECOND / config.max_frames)
        # The tail is counted once a row, since most rows have one clip.
        seconds = np.minimum(seconds + tail, cut * config.max_frames / MEL_FRAMES_PER_SECOND)
        frames = (
            config.max_frames if full else max(2, round(MEL_FRAMES_PER_SECOND * seconds.sum() / max(1, cut.sum())))
        )
        audio = cut.mean() * count_audio_tokens(frames, config.projector_stride)
        return MeanRows(
            count=plan.rows,
            text=max(1.0, float(lengths.mean() - audio)),
            windows=float(cut.mean()),
            frames=frames,
            padding=padding_share(planned, corpus.lengths, plan.rule),
            steps=len(planned),
        )
    if not data.rows or not data.text_tokens_per_row:
        raise ValueError(
            f"{data.path} is not at hand; say what it holds with data.rows, data.seconds_per_row and "
            "data.text_tokens_per_row"
        )
    clips = math.ceil(data.seconds_per_row * MEL_FRAMES_PER_SECOND / config.max_frames)
    of_a_row = min((data.seconds_per_row + tail) * MEL_FRAMES_PER_SECOND, clips * config.max_frames)
    frames = config.max_frames if full else max(2, round(of_a_row / max(1, clips)))
    at_once = recipe.batch.at_once
    if recipe.batch.max_tokens:
        of_audio = clips * count_audio_tokens(frames, config.projector_stride)
        at_once = max(1, min(at_once, int(recipe.batch.max_tokens // (data.text_tokens_per_row + of_audio))))
    steps = math.ceil(data.rows / (at_once * recipe.batch.accumulation * world))
    return MeanRows(data.rows, data.text_tokens_per_row, clips, frames, None, steps)


def config_of(recipe: Recipe) -> LlasoConfig:
    """Return the configuration of the network that a recipe trains, from files on this disk or from known sizes.

    Raises:
        ValueError: it is neither here nor known.
    """
    choice = recipe.model
    if choice.checkpoint and (Path(choice.checkpoint) / "config.json").exists():
        if (kind := AutoConfig.from_pretrained(choice.checkpoint).model_type) != "llaso":
            raise ValueError(f"model.checkpoint {choice.checkpoint} is a {kind} model, not a LLaSO one")
        config = LlasoConfig.from_pretrained(choice.checkpoint)
        config.audio_padding = choice.audio_padding or config.audio_padding
        return config
    audio, text = _sizes(choice.encoder, KNOWN_ENCODERS), _sizes(choice.llm, KNOWN_LLMS)
    if audio is None or text is None:
        raise ValueError(
            f"--dry-run reads no Hub: give folders for model.checkpoint, or for model.encoder and model.llm (here "
            f"{choice.checkpoint}, {choice.encoder}, {choice.llm}), or one of "
            f"{', '.join([*KNOWN_ENCODERS, *KNOWN_LLMS])}"
        )
    if (
        Path(str(choice.encoder)).is_dir() and Path(str(choice.llm)).is_dir()
    ):  # the audio tokens enlarge the vocabulary
        placeholder = new_processor(str(choice.encoder), str(choice.llm)).audio_token_id
        text = text | {"vocab_size": max(placeholder, text["vocab_size"])}
    return LlasoConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=text["vocab_size"],
        audio_padding=choice.audio_padding or "full",
        projector_stride=choice.projector_stride or 1,
        projector_pooling=choice.projector_pooling or "average",
        projector_norm=choice.projector_norm or False,
    )


def _network(choice: ModelChoice) -> str:
    """Say where the sizes come from."""
    backbones = f"{choice.encoder} and {choice.llm}"
    if choice.checkpoint is None:
        return backbones
    here = (Path(choice.checkpoint) / "config.json").exists()
    return choice.checkpoint if here else f"{backbones}; {choice.checkpoint} is not at hand"


def _processor_at_hand(recipe: Recipe, config: LlasoConfig) -> LlasoProcessor | None:
    """Return the processor that counts the corpus's tokens, from folders on this disk; None if there are none."""
    choice = recipe.model
    if choice.checkpoint and (Path(choice.checkpoint) / "processor_config.json").exists():
        processor = LlasoProcessor.from_pretrained(choice.checkpoint)
        processor.audio_padding = config.audio_padding
        processor.audio_tail = processor.audio_tail if choice.audio_tail is None else choice.audio_tail
        return processor
    if choice.encoder and choice.llm and Path(choice.encoder).is_dir() and Path(choice.llm).is_dir():
        return new_processor(
            choice.encoder,
            choice.llm,
            audio_padding=config.audio_padding,
            audio_tail=choice.audio_tail or 0.0,
            projector_stride=config.projector_stride,
        )
    return None


def _onto_fake_cpu(model: nn.Module) -> None:
    """Put fake tensors of the same shapes and types in place of those on the meta device; tied ones stay tied."""
    fakes = {
        weight: nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
        for weight in model.parameters()
    }
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else fakes[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


def _sizes(name: str | None, known: dict[str, dict]) -> dict | None:
    if name is None:
        return None
    if (Path(name) / "config.json").exists():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name)
        return config.get_text_config().to_dict() if config.model_type != "whisper" else config.to_dict()
    return known.get(name)
