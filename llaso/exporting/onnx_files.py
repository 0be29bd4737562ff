"""ONNX files of a model: its three parts, what its processor needs, and a description that says how they fit.

`llaso.exporting.onnx_model` runs them without PyTorch. The parts are traced with open lengths, so the same files take
any number of windows, prompts of any length and each step after them.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llaso_common.output_folder import replaced_folder
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .export_folder import DESCRIPTION_FILE, MEL_FILTERS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, write_record
from .network_parts import NetworkPart, network_parts
from .own_answers import end_ids
from .refusals import refuse_disagreement, refuse_sliding_windows, refuse_unfinished_weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Language models, by their type in transformers, whose exported files were compared with them."""
ROTARY = ("default", "llama3")
"""Rotary embeddings that do not depend on the length of the text."""


def export_onnx(
    model: LlasoForConditionalGeneration, processor: LlasoProcessor, out: str | Path, name: str = "LLaSO"
) -> list[Path]:
    """Write a model as ONNX files in single precision.

    Args:
        model: with its weights as trained, neither quantized nor with adapters beside them, on the CPU.
        processor: the model's.
        out: a folder; what is there is replaced once all files are written.
        name: the model's, for the record beside the files.

    Returns:
        The files of the parts. Weights of more than two gigabytes are beside them, in `.onnx.data`.

    Raises:
        ValueError: the model is none that was tried, or a package is missing.
    """
    refuse_untried(model, processor)
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; it needs the extra: pip install 'llaso[onnx]'") from None
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    out = Path(out)
    parts = network_parts(model.eval())
    with replaced_folder(out) as folder:
        described = {part: write_part(network, folder / f"{part}.onnx") for part, network in parts.items()}
        write_processor(processor, folder)
        description = {
            "parts": described,
            **processor_description(processor),
            "eos_token_ids": end_ids(model),
            "max_tokens": model.config.text_config.max_position_embeddings,
        }
        (folder / DESCRIPTION_FILE).write_text(
            json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write_record(folder, name, "onnx")
    return [out / f"{part}.onnx" for part in parts]


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


def write_part(part: NetworkPart, path: Path) -> dict[str, Any]:
    """Trace a part, write it, and return what the description says of it: the shapes of its tensors."""
    with _quiet():
        program = torch.onnx.export(
            part.exported(),
            dynamo=True,
            verbose=False,
            dynamic_shapes=part.lengths,
            input_names=part.inputs,
            output_names=part.outputs,
        )
        assert program is not None
        program.save(str(path))
    graph = program.model.graph
    shapes = {
        kind: {tensor.name: _shape(tensor) for tensor in tensors}
        for kind, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
    return {"file": path.name, **shapes}


def _shape(tensor: Any) -> list[int | str]:
    """The shape of a tensor, an open length by its name; one that only the data decide is a number of audio tokens."""
    sizes = [size if isinstance(size, int) else str(size.value) for size in tensor.shape]
    return ["audio_tokens" if isinstance(size, str) and tensor.name == "audio_embeds" else size for size in sizes]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of torchvision and of its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
