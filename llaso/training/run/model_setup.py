"""Opens the model that a run starts from, and freezes, casts, adapts and describes its three parts.

A frozen part stays in `eval()` while the rest trains. If no gradient passes through it (the encoder), no graph is
recorded. Adapters (LoRA) are injected into LLM or encoder and merged back when the model is exported.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llaso.progress import Report
from modeling_llaso.configuration_llaso import check_padding
from modeling_llaso.conversion import new_model
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import LoraChoice, Part, Recipe

logger = logging.getLogger(__name__)

LARGE_PART, LARGE_RATE = 50_000_000, 5e-4
"""Parameters from which a part has surely been pretrained, and a learning rate that ruins such weights."""
NORM_IN_FP32 = "Mismatch dtype between input and weight"
"""Begins torch's warning of an RMSNorm whose weight is kept in fp32 while its input is bf16, which is wanted here."""
BYTES_GRADIENT, BYTES_MOMENTS = 4, 8
"""Bytes of a trainable parameter: its float32 gradient, and Adam's two moments."""
PARTS: tuple[Part, ...] = ("encoder", "projector", "llm")


@dataclass(frozen=True)
class PartReport:
    """The size of one part, and whether it learns.

    Attributes:
        name: encoder, projector or llm.
        parameters: number of parameters, tied ones once.
        trainable: number of those that learn.
        weight_bytes: memory of all of them, in the types they are held in.
        graph: whether gradients pass through the part, so that its activations are kept.
        adapted: names of its layers that have a low-rank adapter.
    """

    name: Part
    parameters: int
    trainable: int
    weight_bytes: int
    graph: bool
    adapted: tuple[str, ...] = ()


def set_up_model(
    recipe: Recipe, report: Report
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor, list[nn.Module]]:
    """Open the model and processor that a recipe starts from, set up the model's parts and report them.

    Returns:
        Model, processor, and the frozen modules, to be kept in `eval()`.
    """
    model, processor = open_model(recipe)
    frozen = set_up_parts(model, recipe)
    parts = report_parts(model)
    for line in (*describe_parts(parts), *rate_warnings(parts, recipe)):
        report(line)
    return model, processor, frozen


def open_model(recipe: Recipe) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Open the model and processor that a recipe starts from, in float32.

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
            projector_norm=choice.projector_norm or False,
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
        for name in ("projector_stride", "projector_pooling", "projector_norm"):
            if getattr(choice, name) not in (None, getattr(config, name)):
                raise ValueError(
                    f"model.{name} is {getattr(choice, name)}, but the projector of {choice.checkpoint} was made with "
                    f"{getattr(config, name)}; leave it out, or start from an encoder and an LLM"
                )
        model = LlasoForConditionalGeneration.from_pretrained(
            choice.checkpoint, revision=choice.revision or "main", dtype=torch.float32
        )
        processor = LlasoProcessor.from_pretrained(choice.checkpoint, revision=choice.revision or "main")
    if recipe.compute.attention:
        try:
            model.set_attn_implementation(recipe.compute.attention)
        except ImportError as error:
            raise ValueError(f"compute.attention={recipe.compute.attention}: {error}") from error
    if choice.audio_padding is not None:
        if choice.audio_padding != model.config.audio_padding:
            logger.warning(
                "model.audio_padding is %s, but %s was trained with %s. Its encoder's vectors differ between the two, "
                "most of all at the end of a clip, and the projector learned to read those it was trained with: train "
                "on, and measure (docs/real.md)",
                choice.audio_padding,
                choice.checkpoint,
                model.config.audio_padding,
            )
        model.config.audio_padding = processor.audio_padding = choice.audio_padding
    if choice.audio_tail is not None:
        if choice.checkpoint is not None and choice.audio_tail != processor.audio_tail:
            logger.warning(
                "model.audio_tail is %g, but %s was trained with %g, so it hears other ends of recordings than it "
                "learned from: train on, and measure (docs/real.md)",
                choice.audio_tail,
                choice.checkpoint,
                processor.audio_tail,
            )
        processor.audio_tail = choice.audio_tail
    try:
        check_padding(processor.audio_padding, processor.audio_tail)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    return model, processor


def set_up_parts(model: LlasoForConditionalGeneration, recipe: Recipe) -> list[nn.Module]:
    """Freeze what the recipe does not train, add its adapters, and cast what is frozen, in place.

    Returns:
        The frozen modules, to be kept in `eval()`.

    Raises:
        ValueError: the encoder has fewer layers than are to learn; or see `add_lora`.
    """
    frozen = freeze_all_but(model, recipe.train)
    if recipe.encoder_last_layers:
        frozen += freeze_first_layers(model, recipe.encoder_last_layers)
    add_adapters(model, recipe)
    if recipe.compute.frozen_weights == "bf16":
        hold_frozen_in(model, torch.bfloat16)
    return frozen


def modules_of(model: LlasoForConditionalGeneration, part: Part) -> list[nn.Module]:
    """Return the modules that make up a part; the LLM's head belongs to the LLM."""
    return {
        "encoder": [model.model.audio_tower],
        "projector": [model.model.multi_modal_projector],
        "llm": [model.model.language_model, model.lm_head],
    }[part]


def part_of(name: str) -> Part:
    """Return the part that a parameter of the model belongs to, by its name."""
    if name.startswith("model.audio_tower."):
        return "encoder"
    return "projector" if name.startswith("model.multi_modal_projector.") else "llm"


def freeze_all_but(model: LlasoForConditionalGeneration, train: Iterable[Part]) -> list[nn.Module]:
    """Let the named parts learn and nothing else.

    Whisper's positions are a fixed table of sines: they stay frozen even if the encoder learns.

    Returns:
        The frozen modules, to be kept in `eval()`.
    """
    train = set(train)
    frozen = []
    for part in PARTS:
        for module in modules_of(model, part):
            module.requires_grad_(part in train)
            if part not in train:
                frozen.append(module)
    model.model.audio_tower.embed_positions.requires_grad_(False)
    return frozen


def freeze_first_layers(model: LlasoForConditionalGeneration, last: int) -> list[nn.Module]:
    """Freeze the encoder except for its last layers and the norm behind them.

    Args:
        model: its encoder learns.
        last: number of layers that go on learning.

    Returns:
        The frozen modules, to be kept in `eval()`.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    tower = model.model.audio_tower
    if last > len(tower.layers):
        raise ValueError(
            f"recipe: `encoder_last_layers` is {last}, but the encoder has {len(tower.layers)}; set it to at most "
            f"{len(tower.layers)}, or to 0, which lets all of it learn"
        )
    first = [tower.conv1, tower.conv2, *tower.layers[: len(tower.layers) - last]]
    for module in first:
        module.requires_grad_(False)
    return first


def hold_frozen_in(model: LlasoForConditionalGeneration, dtype: torch.dtype) -> None:
    """Hold the weights that do not learn in another type, in place: bf16 halves them.

    Weights that learn stay as they are, since small updates would be lost in rounding; so does the encoder's table of
    positions if anything in the encoder learns. Buffers, rotary frequencies among them, stay as well.
    """
    encoder = model.model.audio_tower
    positions = encoder.embed_positions.weight.data
    for part in PARTS:
        for module in modules_of(model, part):
            cast_frozen(module, dtype)
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        encoder.embed_positions.weight.data = positions


def cast_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of a module's weights that do not learn, in place; tied ones stay tied."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def keep_frozen(frozen: Iterable[nn.Module], model: LlasoForConditionalGeneration) -> None:
    """Put the frozen modules back into `eval()` after the Trainer has put the whole model into `train()`.

    An LLM's layer computes its activations again in the backward pass only while it is in `train()`, learning or not.
    With gradient checkpointing the layer itself therefore stays in `train()`, but not the modules inside it (dropout).
    """
    for module in frozen:
        module.eval()
    for layer in model.model.language_model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = True


def report_parts(model: LlasoForConditionalGeneration) -> list[PartReport]:
    """Count the parameters of each part, and those that learn."""
    reports = []
    learns_before = False
    for part in PARTS:
        parameters = {id(p): p for module in modules_of(model, part) for p in module.parameters()}.values()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        learns_before = learns_before or trainable > 0
        held = sum(p.numel() * p.element_size() for p in parameters)
        weights = [name for module in modules_of(model, part) for name, _ in module.named_parameters()]
        adapted = tuple(name.split(".lora_A.")[0] for name in weights if ".lora_A." in name)
        count = sum(p.numel() for p in parameters)
        reports.append(PartReport(part, count, trainable, held, learns_before, adapted))
    return reports


def describe_parts(reports: Iterable[PartReport]) -> list[str]:
    """Return one line for each part, as `llaso train` prints them."""
    lines = []
    for part in reports:
        if part.adapted:
            kinds = sorted({name.rpartition(".")[2] for name in part.adapted})
            state = f"trains {part.trainable:,} in adapters of {len(part.adapted):,} layers: {', '.join(kinds)}"
        elif part.trainable:
            state = f"trains {part.trainable:,}"
        elif part.graph:
            state = "frozen, in eval(); gradients pass through"
        else:
            state = "frozen, in eval() and no_grad()"
        size = part.weight_bytes / 1e9
        lines.append(f"{part.name:<10}{part.parameters:>15,} parameters {size:>7.2f} GB   {state}")
    return lines


def rate_warnings(parts: Iterable[PartReport], recipe: Recipe) -> list[str]:
    """Return a line for each pretrained part whose weights train at a rate meant for small new ones.

    Adapters and projectors start from nothing and take such rates.
    """
    lines = []
    for part in parts:
        rate = getattr(recipe.optimizer, part.name).learning_rate or recipe.optimizer.learning_rate
        large = part.name != "projector" and part.parameters >= LARGE_PART
        if large and part.trainable and not part.adapted and rate >= LARGE_RATE:
            section = "lora" if part.name == "llm" else "encoder_lora"
            lines.append(
                f"warning: {part.name} has {part.parameters:,} parameters, which look pretrained, and learns at "
                f"{rate:g}: that overwrites what it knows. Set optimizer.{part.name}.learning_rate to "
                f"{LARGE_RATE / 5:g} or less, or let adapters learn in its place ({section}.rank)"
            )
    return lines


def add_adapters(model: LlasoForConditionalGeneration, recipe: Recipe) -> None:
    """Add a recipe's adapters, if it has any, in place; see `add_lora`."""
    if recipe.lora.rank:
        add_lora(model, recipe.lora, "llm")
    if recipe.encoder_lora.rank:
        add_lora(model, recipe.encoder_lora, "encoder")


def add_lora(model: LlasoForConditionalGeneration, choice: LoraChoice, part: Literal["encoder", "llm"]) -> None:
    """Freeze a part's weights and put low-rank adapters beside its linear layers, in place.

    Raises:
        ValueError: peft is not installed, or the part has no linear layer of one of the names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("adapters (LoRA) need peft: pip install 'llaso[train]'") from error
    adapted = modules_of(model, part)[0]
    names = {name.rpartition(".")[2] for name, module in adapted.named_modules() if isinstance(module, nn.Linear)}
    if missing := [target for target in choice.targets if target not in names]:
        raise ValueError(
            f"{'lora' if part == 'llm' else 'encoder_lora'}.targets: the {part} has no linear layer named "
            f"{', '.join(missing)}; it has {', '.join(sorted(names))}"
        )
    for module in modules_of(model, part):
        module.requires_grad_(False)
    config = LoraConfig(
        r=choice.rank, lora_alpha=choice.alpha, lora_dropout=choice.dropout, target_modules=list(choice.targets)
    )
    inject_adapter_in_model(config, adapted)


def merge_lora(model: LlasoForConditionalGeneration) -> None:
    """Add the adapters into the weights they stand beside and take them out, in place.

    A merged weight is a learned one, and takes the type of its adapters, float32.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            cast_frozen(module.get_base_layer(), torch.float32)
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


@torch.no_grad()
def vector_norms(model: LlasoForConditionalGeneration, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Measure the norms of the vectors that the LLM reads.

    Args:
        model: in `eval()`.
        batch: `input_ids`, `attention_mask`, `input_features` and `input_features_mask` of some rows.

    Returns:
        The mean norm of the projected audio vectors, and that of the text's embeddings.
    """
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    audio = model.get_audio_features(
        batch["input_features"], batch["input_features_mask"], return_dict=True
    ).pooler_output
    ids = batch["input_ids"]
    is_text = batch["attention_mask"].bool() & (ids != model.config.audio_token_id)
    text = model.get_input_embeddings()(ids[is_text])
    return audio.float().norm(dim=-1).mean().item(), text.float().norm(dim=-1).mean().item()
