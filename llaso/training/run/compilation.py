"""Compiles the layers of encoder and LLM with torch.compile, each by itself, for tensors of any length.

All layers of a kind share what is compiled, so that a deep model takes no longer to compile than a shallow one. Names
of weights, hooks and checkpoints stay as they are.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..recipe.recipe import Recipe

VARIANTS = 32
"""Forms that a layer may be compiled in: with and without a mask, for one row and for several, with gradients and
without. PyTorch's own limit is 8, for encoder and LLM together."""


def should_compile(recipe: Recipe, device: str, sharded: bool) -> bool:
    """Return whether a run is to compile its layers: as the recipe says, or, with `auto`, if nothing rules it out.

    Args:
        recipe: of the run.
        device: type of the device, as cpu or cuda.
        sharded: whether weights are split over processes.

    Raises:
        ValueError: the recipe wants it, but weights are split, or there is no compiler.
    """
    compute = recipe.compute
    if not compute.compile:
        return False
    reason = ""
    if sharded:
        reason = "has not been tried with weights that are split; launch without FSDP or DeepSpeed"
    elif device == "cuda" and importlib.util.find_spec("triton") is None:
        reason = "needs Triton on a GPU; install it, or set compute.compile=false"
    elif device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        reason = "needs a C++ compiler on a CPU; install g++ or clang++, or set compute.compile=false"
    if reason and compute.compile is True:
        raise ValueError(f"compute.compile {reason}")
    return not reason and not recipe.batch.packing and compute.gradient_checkpointing != "selective"


def compile_layers(model: LlasoForConditionalGeneration) -> None:
    """Compile the forward pass of every layer of encoder and LLM, in place; it happens when they first run."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for part in (model.model.audio_tower, model.model.language_model):
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]


def not_compiled(compiled: bool) -> AbstractContextManager:
    """Return a context in which compiled layers run as they are: generating would compile them for every length."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
