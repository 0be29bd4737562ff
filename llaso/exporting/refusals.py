"""Refuses what no export carries: unfinished weights, parts that disagree, attention to a window of the text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor


def refuse_unfinished_weights(model: LlasoForConditionalGeneration) -> None:
    """Refuse quantized weights, and adapters that are not merged.

    Raises:
        ValueError: saying which, and what to export instead.
    """
    if getattr(model.config, "quantization_config", None):
        raise ValueError("the weights are quantized already; export the checkpoint that they were quantized from")
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError(
            "the model has adapters beside its weights; merge them (`llaso train` does) and save it first"
        )


def refuse_disagreement(model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> None:
    """Refuse a model and a processor that count audio tokens differently.

    Raises:
        ValueError: their audio_padding or projector_stride differ.
    """
    config = model.config
    for name in ("audio_padding", "projector_stride"):
        ours, theirs = getattr(config, name), getattr(processor, name)
        if ours != theirs:
            raise ValueError(
                f"the model has {name}={ours!r} and the processor {theirs!r}; load both from one checkpoint"
            )


def refuse_untried_language_model(text: Any, families: Collection[str], rotary: Collection[str]) -> None:
    """Refuse a language model, or a rotary embedding, of which no exported files were compared with the model.

    Args:
        text: its configuration.
        families: types in transformers that were tried.
        rotary: types of rotary embedding that were tried with this family.

    Raises:
        ValueError: with those that were tried.
    """
    if text.model_type not in families:
        raise ValueError(
            f"the language model is a {text.model_type!r}; the export was tried with {', '.join(families)}"
        )
    kind = text.rope_parameters.get("rope_type", "default")
    if kind not in rotary:
        raise ValueError(
            f"the language model's rotary embedding is {kind!r}; for a {text.model_type} the export was tried with "
            f"{' and '.join(rotary)}"
        )


def refuse_sliding_windows(text: Any) -> None:
    """Refuse a language model whose tokens attend only to the tokens shortly before them.

    Args:
        text: its configuration.

    Raises:
        ValueError: with the field to change.
    """
    fields = text.to_dict()
    attention = set(fields.get("layer_types") or ()) - {"full_attention"}
    windowed = fields.get("sliding_window") if text.model_type == "mistral" else fields.get("use_sliding_window")
    if windowed or attention:
        raise ValueError(
            "the language model attends to a sliding window, which the exported files would not do; if no text is "
            'longer than the window, set "sliding_window": null in text_config of config.json'
        )
