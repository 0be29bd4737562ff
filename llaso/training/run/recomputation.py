"""Which activations the backward pass computes again: none, all of a layer, or all but the products of matrices.

`selective` keeps what takes long to compute, the outputs of matrix products and of attention, and computes norms,
gates, rotations and changes of type again: about half the memory, for little more than the time of reading it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from modeling_llaso.compatibility_llaso import CHECKPOINTING_SINCE_5_23
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..recipe.recipe import Checkpointing

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
"""Operators whose output is kept."""


def keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return whether an operator's output is kept for the backward pass or computed again."""
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointing_arguments(choice: Checkpointing) -> dict[str, Any]:
    """Return a recipe's choice as transformers' arguments, under the names that its version has for them."""
    settings: dict[str, Any] = {CHECKPOINTING_SINCE_5_23: bool(choice)}
    if choice == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, keep_products)
        settings[f"{CHECKPOINTING_SINCE_5_23}_kwargs"] = {"use_reentrant": False, "context_fn": contexts}
    return settings


def checkpoint_layers(model: LlasoForConditionalGeneration, choice: Checkpointing) -> None:
    """Make a model's layers compute activations again as a recipe says; without a trainer, which does so itself."""
    if choice:
        settings = checkpointing_arguments(choice)
        settings.pop(CHECKPOINTING_SINCE_5_23)
        getattr(model, f"{CHECKPOINTING_SINCE_5_23}_enable")(**settings)
