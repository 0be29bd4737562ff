"""What an export without PyTorch needs beside the networks: the processor's files, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .export_folder import MEL_FILTERS_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from .refusals import refuse_disagreement, refuse_sliding_windows, refuse_unfinished_weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Language models, by their type in transformers, whose exported files were compared with them."""
ROTARY = ("default", "llama3")
"""Rotary embeddings that do not depend on the length of the text."""


def refuse_untried(model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> None:
    """Refuse models whose files were never compared with them.

    Raises:
        ValueError: saying what is not known.
    """
    refuse_unfinished_weights(model)
    refuse_disagreement(model, processor)
    text: Any = model.config.text_config
    if text.model_type not in FAMILIES:
        raise ValueError(
            f"the language model is a {text.model_type!r}; the export was tried with {', '.join(FAMILIES)}"
        )
    rotary = text.rope_parameters.get("rope_type", "default")
    if rotary not in ROTARY:
        raise ValueError(
            f"the language model's rotary embedding is {rotary!r}; the export was tried with {' and '.join(ROTARY)}"
        )
    refuse_sliding_windows(text)
    if not isinstance(processor.chat_template, str):
        raise ValueError("the processor has several chat templates; save it with the one that the files shall use")


def write_processor(processor: LlasoProcessor, folder: Path) -> None:
    """Write the tokenizer, the chat template and the filters of the log-mel."""
    tokenizer = copy.deepcopy(processor.tokenizer.backend_tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    assert isinstance(processor.chat_template, str)
    (folder / TEMPLATE_FILE).write_text(processor.chat_template, encoding="utf-8")
    np.save(folder / MEL_FILTERS_FILE, processor.feature_extractor.mel_filters.astype(np.float32))


def processor_description(processor: LlasoProcessor) -> dict[str, Any]:
    """Say what a program needs to know of the processor: how audio is cut and counted, and what tokens mean."""
    extractor = processor.feature_extractor
    return {
        "audio": {
            "padding": processor.audio_padding,
            "sampling_rate": extractor.sampling_rate,
            "window_samples": extractor.n_samples,
            "window_frames": extractor.nb_max_frames,
            "n_fft": extractor.n_fft,
            "hop_length": extractor.hop_length,
            "mel_filters": MEL_FILTERS_FILE,
            "projector_stride": processor.projector_stride,
            "max_seconds": processor.max_audio_len,
        },
        "text": {
            "tokenizer": TOKENIZER_FILE,
            "chat_template": TEMPLATE_FILE,
            "placeholder": processor.audio_token,
            "placeholder_id": processor.audio_token_id,
            "bos_token": processor.tokenizer.bos_token,
            "transcription_prompt": processor.default_transcription_prompt,
        },
    }
