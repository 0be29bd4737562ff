"""What a recipe would cost, without weights, data or network: parameters, steps, tokens, memory, arithmetic.

The network is built on the meta device, so its counts are exact; rows and lengths are read where the corpus is at
hand and taken from the recipe where it is not; memory and FLOPs are estimates, whose formulas stand beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_llaso import LLAMA_3_2_3B, WHISPER_LARGE_V3, LlasoConfig
from ..modeling_llaso import LlasoForConditionalGeneration
from .config import Recipe, load_recipe
from .data import NumberedCorpus, open_corpus
from .parts import PartReport, add_lora, describe_parts, freeze_all_but, hold_frozen_in, report_parts
from .plan import padding_share, steps_per_epoch
from .train import batch_rule

KNOWN_ENCODERS = {"openai/whisper-large-v3": WHISPER_LARGE_V3}
KNOWN_LLMS = {"meta-llama/Llama-3.2-3B-Instruct": LLAMA_3_2_3B}
"""Backbones whose sizes are known here, so that the released recipes need no download to be weighed."""

ANSWER_SHARE = 0.05
"""Of a row's tokens, those that are answers, where no corpus says: it sizes the logits."""
BYTES_GRADIENT, BYTES_ADAM = 4, 8
"""Float32 gradients; Adam's two moments."""
GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """A run, weighed.

    Attributes:
        parts: of the network, trainable or not.
        rows: of the corpus.
        tokens: of one epoch, after audio expansion, padding left out.
        padding: share of what is computed that is padding; None where no corpus is at hand.
        steps: of the run.
        batch: rows of one step, all processes together.
        memory: bytes on one device by purpose, unsharded.
        flops: of the whole run.
        measured: whether rows and tokens were read from the corpus.
    """

    parts: list[PartReport]
    rows: int
    tokens: int
    padding: float | None
    steps: int
    batch: int
    memory: dict[str, float]
    flops: float
    measured: bool

    def lines(self) -> list[str]:
        """As `llaso train --dry-run` prints it."""
        total = sum(part.parameters for part in self.parts)
        trainable = sum(part.trainable for part in self.parts)
        source = "read from the corpus" if self.measured else "as the recipe says; the corpus is not at hand"
        lines = [*describe_parts(self.parts), f"{'in all':<10}{total:>15,} parameters   {trainable:,} train", ""]
        lines.append(f"rows            {self.rows:,} ({source})")
        lines.append(f"tokens          {self.tokens:,} an epoch, {self.tokens / max(1, self.rows):,.0f} a row")
        if self.padding is not None:
            lines.append(f"padding         {self.padding:.1%} of what is computed")
        lines.append(f"effective batch {self.batch:,} rows")
        lines.append(f"steps           {self.steps:,}")
        lines.append(f"arithmetic      {self.flops:.3g} FLOP (estimate)")
        lines.append(f"memory          {sum(self.memory.values()) / GIB:.1f} GiB a device, unsharded (estimate):")
        lines += [f"                {size / GIB:8.1f} GiB {purpose}" for purpose, size in self.memory.items()]
        return lines


def dry_run(recipe: str | Path | Recipe, overrides: Iterable[str] = ()) -> Estimate:
    """Weigh a recipe.

    Raises:
        ValueError: a mistake in the recipe, or a backbone whose sizes are neither known nor on this disk.
    """
    settings = load_recipe(recipe, overrides)
    with torch.device("meta"):
        model = LlasoForConditionalGeneration(config_of(settings))
        freeze_all_but(model, settings.train)
        if settings.lora.rank:
            add_lora(model, settings.lora)
    if settings.compute.frozen_weights == "bf16":
        hold_frozen_in(model, torch.bfloat16)
    parts = report_parts(model)

    world = int(os.environ.get("WORLD_SIZE", 1))
    rule = batch_rule(settings, world)
    padding, measured = None, Path(settings.data.path).exists() and not settings.data.streaming
    if measured:
        corpus = open_corpus(settings.data, settings.seed)
        assert isinstance(corpus, NumberedCorpus)
        windows = corpus.windows(rule, settings.seed)
        epoch_steps = steps_per_epoch(windows, rule, settings.seed)
        lengths = [window for window in windows(0)]
        rows, tokens = sum(map(len, lengths)), sum(length for window in lengths for _, length in window)
        padding = padding_share(rule.epoch(windows(0), settings.seed, 0))
    else:
        rows, tokens = settings.data.rows, settings.data.rows * settings.data.tokens_per_row
        if not rows or not tokens:
            raise ValueError(
                f"{settings.data.path} is not at hand; say what it holds with data.rows and data.tokens_per_row"
            )
        epoch_steps = -(-rows // (settings.batch.per_device * rule.parallel))
    steps = settings.optimizer.max_steps or max(1, round(settings.optimizer.epochs * epoch_steps))
    per_row = tokens / rows
    seen = steps * settings.batch.per_device * rule.parallel * per_row
    return Estimate(
        parts=parts,
        rows=rows,
        tokens=tokens,
        padding=padding,
        steps=steps,
        batch=settings.batch.per_device * rule.parallel,
        memory=_memory(model, parts, settings, settings.batch.per_device * per_row),
        flops=seen * flops_per_token(model, parts, per_row, settings.compute.gradient_checkpointing),
        measured=measured,
    )


def config_of(recipe: Recipe) -> LlasoConfig:
    """The network that a recipe trains, from files on this disk or from known sizes.

    Raises:
        ValueError: it is neither here nor known.
    """
    choice = recipe.model
    if choice.checkpoint and (Path(choice.checkpoint) / "config.json").exists():
        config = LlasoConfig.from_pretrained(choice.checkpoint)
        config.audio_padding = choice.audio_padding
        return config
    audio, text = _sizes(choice.encoder, KNOWN_ENCODERS), _sizes(choice.llm, KNOWN_LLMS)
    if audio is None or text is None:
        raise ValueError(
            f"--dry-run reads no Hub: give folders for model.checkpoint, or for model.encoder and model.llm (here "
            f"{choice.checkpoint}, {choice.encoder}, {choice.llm}), or one of "
            f"{', '.join([*KNOWN_ENCODERS, *KNOWN_LLMS])}"
        )
    return LlasoConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=text["vocab_size"],
        audio_padding=choice.audio_padding,
        projector_stride=choice.projector_stride,
        projector_pooling=choice.projector_pooling,
    )


def flops_per_token(
    model: LlasoForConditionalGeneration, parts: list[PartReport], row_tokens: float, checkpointing: bool
) -> float:
    """FLOPs that one token of a row costs in training.

    Two a weight and token forward, two more backward for the gradient of a part's input, two more for that of its
    weights, two more where checkpointing computes the forward pass again; and attention's own products. An encoder
    works on one position a token (its convolutions apart), which holds for a projector stride of 1.
    """
    text, audio = model.config.text_config, model.config.audio_config
    by_name = {part.name: part for part in parts}
    embedding = text.vocab_size * text.hidden_size

    def passes(part: PartReport) -> int:
        return 2 + (2 + 2 * checkpointing if part.graph else 0) + (2 if part.trainable else 0)

    llm, encoder, projector = by_name["llm"], by_name["encoder"], by_name["projector"]
    flops = passes(llm) * (llm.parameters - embedding) + passes(projector) * projector.parameters
    flops += passes(encoder) * encoder.parameters
    flops += passes(llm) * text.num_hidden_layers * 2 * row_tokens * text.hidden_size
    positions = audio.max_source_positions if model.config.audio_padding == "full" else row_tokens
    return flops + passes(encoder) * audio.encoder_layers * 2 * positions * audio.d_model


def _memory(
    model: LlasoForConditionalGeneration, parts: list[PartReport], recipe: Recipe, tokens: float
) -> dict[str, float]:
    """Bytes on one device: states exactly, activations by the usual count of what a transformer layer keeps.

    A layer keeps about 34 hidden vectors of two bytes a token without checkpointing (Korthikanti et al. 2022, with
    fused attention), or its input alone with it; the head keeps its logits in three copies of four bytes.
    """
    text = model.config.text_config
    trainable = sum(part.trainable for part in parts)
    width = 2 if recipe.compute.precision == "bf16" else 4
    vectors = 1 if recipe.compute.gradient_checkpointing else 17
    scored = tokens * (ANSWER_SHARE if recipe.compute.answer_only_logits else 1)
    return {
        "weights": sum(part.weight_bytes for part in parts),
        "gradients": BYTES_GRADIENT * trainable,
        "Adam": BYTES_ADAM * trainable,
        "activations": tokens * text.num_hidden_layers * text.hidden_size * vectors * width,
        "logits": scored * text.vocab_size * 3 * 4,
    }


def _sizes(name: str | None, known: dict[str, dict]) -> dict | None:
    if name is None:
        return None
    if (Path(name) / "config.json").exists():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name)
        return config.get_text_config().to_dict() if config.model_type != "whisper" else config.to_dict()
    return known.get(name)
