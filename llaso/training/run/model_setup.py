"""Opens the model that a run starts from, and freezes, adapts and casts its parts as the recipe says."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

from modeling_llaso.conversion import new_model
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..recipe.recipe import Recipe
from .model_parts import add_lora, freeze_all_but, hold_frozen_in


def set_up_parts(model: LlasoForConditionalGeneration, recipe: Recipe) -> list[nn.Module]:
    """Freeze what the recipe does not train, add its adapters, and cast what is frozen, in place.

    Returns:
        The frozen modules, to be kept in `eval()`.
    """
    frozen = freeze_all_but(model, recipe.train)
    if recipe.lora.rank:
        add_lora(model, recipe.lora)
    if recipe.compute.frozen_weights == "bf16":
        hold_frozen_in(model, torch.bfloat16)
    return frozen


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
