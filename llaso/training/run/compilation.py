"""Compiles the layers of encoder and LLM with torch.compile, each by itself, for tensors of any length.

All layers of a kind share what is compiled, so that a deep model takes no longer to compile than a shallow one. Names
of weights, hooks and checkpoints stay as they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

VARIANTS = 32
"""Forms that a layer may be compiled in: with and without a mask, for one row and for several, with gradients and
without. PyTorch's own limit is 8, for encoder and LLM together."""


def compile_layers(model: LlasoForConditionalGeneration) -> None:
    """Compile the forward pass of every layer of encoder and LLM, in place; it happens when they first run."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for part in (model.model.audio_tower, model.model.language_model):
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]


def not_compiled(is_compiled: bool) -> AbstractContextManager:
    """Return a context in which compiled layers run as they are: generating would compile them for every length."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
