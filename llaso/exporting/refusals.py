"""Refuses what no export carries: unfinished weights, parts that disagree, attention to a window of the text."""

from __future__ import annotations

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
    if processor.audio_padding != config.audio_padding or processor.projector_stride != config.projector_stride:
        raise ValueError("processor and model disagree on audio_padding or projector_stride; save them together")


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
