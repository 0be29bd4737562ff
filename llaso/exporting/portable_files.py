"""Writes exports in parts: the networks, the processor's files and a description; and refuses untried models."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llaso_common.output_folder import replaced_folder
from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .export_folder import DESCRIPTION_FILES, MEL_FILTERS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, write_record
from .network_parts import NetworkPart, network_parts
from .refusals import (
    refuse_disagreement,
    refuse_sliding_windows,
    refuse_unfinished_weights,
    refuse_untried_language_model,
)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Language models, by their type in transformers, whose exported files were compared with them."""
FILES_OF = {"onnx": (".onnx", False), "executorch": (".pte", True)}
"""How the files of each kind of export end, and whether its parts take windows and conversations one by one."""
ROTARY = ("default", "llama3")
"""Rotary embeddings that do not depend on the length of the text."""


def refuse_untried(model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> None:
    """Refuse models whose files were never compared with them.

    Raises:
        ValueError: naming what was never compared.
    """
    refuse_unfinished_weights(model)
    refuse_disagreement(model, processor)
    text: Any = model.config.text_config
    refuse_untried_language_model(text, FAMILIES, ROTARY)
    refuse_sliding_windows(text)
    if not isinstance(processor.chat_template, str):
        raise ValueError("the processor has several chat templates; save it with a single template")


def export_parts(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    out: str | Path,
    name: str,
    kind: str,
    write: Callable[[NetworkPart, Path], None],
    context: int | None = None,
) -> list[Path]:
    """Write the parts of a model in single precision, with what a program needs to run them.

    Args:
        model: with its weights as trained, neither quantized nor with adapters beside them, on the CPU.
        processor: the model's.
        out: a folder; what is there is replaced once all files are written.
        name: the model's, for the record beside the files.
        kind: `onnx` or `executorch`.
        write: writes a part to a path.
        context: tokens that the decoder takes, the answer included; by default as many as the language model does.

    Returns:
        The files of the parts.

    Raises:
        ValueError: the model is none that was tried.
    """
    refuse_untried(model, processor)
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    ending, one_by_one = FILES_OF[kind]
    parts = network_parts(model.eval(), one_by_one)
    files = {part: f"{part}{ending}" for part in parts}
    out = Path(out)
    with replaced_folder(out) as folder:
        for part, network in parts.items():
            write(network, folder / files[part])
        write_processor(processor, folder)
        description = {
            "parts": {
                part: {"file": files[part], "inputs": network.inputs, "outputs": network.outputs}
                for part, network in parts.items()
            },
            **processor_description(processor),
            "eos_token_ids": end_ids(model),
            "max_tokens": context or model.config.text_config.max_position_embeddings,
        }
        described = json.dumps(description, indent=2, ensure_ascii=False)
        (folder / DESCRIPTION_FILES[kind]).write_text(described + "\n", encoding="utf-8")
        write_record(folder, name, kind)
    return [out / file for file in files.values()]


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Hold back an exporter's warnings about its own internals, those of its loggers too."""
    levels = {logger: logging.getLogger(logger).level for logger in loggers}
    for logger in loggers:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logging.getLogger(logger).setLevel(level)


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
            "tail_samples": round(processor.audio_tail * extractor.sampling_rate),
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
