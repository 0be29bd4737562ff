"""A plugin for vLLM, which finds it by the entry point `vllm.general_plugins` if this package is installed beside it.

vLLM runs a checkpoint without it. The plugin adds `/v1/audio/transcriptions`, and takes models whose embeddings have
a row for the placeholder, or a multiple of 64 rows (docs/serve.md).
"""

from __future__ import annotations


def register() -> None:
    """Register our class for LLaSO's checkpoints; `--model-impl transformers` still takes vLLM's own."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("LlasoForConditionalGeneration", "llaso.serving.vllm_model:LlasoForVllm")
