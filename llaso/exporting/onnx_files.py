"""ONNX files of a model's parts.

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

import onnxscript  # noqa: F401  # torch.onnx needs it, and says so only after it has traced a part
import torch

from llaso_common.output_folder import replaced_folder
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .export_folder import DESCRIPTION_FILE, write_record
from .network_parts import NetworkPart, network_parts
from .own_answers import end_ids
from .portable_files import processor_description, refuse_untried, write_processor


def export_onnx(
    model: LlasoForConditionalGeneration, processor: LlasoProcessor, out: str | Path, name: str = "LLaSO"
) -> list[Path]:
    """Write a model as ONNX files in single precision, with what a program needs to run them.

    Args:
        model: with its weights as trained, neither quantized nor with adapters beside them, on the CPU.
        processor: the model's.
        out: a folder; what is there is replaced once all files are written.
        name: the model's, for the record beside the files.

    Returns:
        The files of the parts. Weights of more than two gigabytes are beside them, in `.onnx.data`.

    Raises:
        ValueError: the model is none that was tried.
    """
    refuse_untried(model, processor)
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    out = Path(out)
    parts = network_parts(model.eval())
    with replaced_folder(out) as folder:
        for part, network in parts.items():
            write_part(network, folder / f"{part}.onnx")
        write_processor(processor, folder)
        description = {
            "parts": {
                part: {"file": f"{part}.onnx", "inputs": network.inputs, "outputs": network.outputs}
                for part, network in parts.items()
            },
            **processor_description(processor),
            "eos_token_ids": end_ids(model),
            "max_tokens": model.config.text_config.max_position_embeddings,
        }
        described = json.dumps(description, indent=2, ensure_ascii=False)
        (folder / DESCRIPTION_FILE).write_text(described + "\n", encoding="utf-8")
        write_record(folder, name, "onnx")
    return [out / f"{part}.onnx" for part in parts]


def write_part(part: NetworkPart, path: Path) -> None:
    """Trace a part and write its graph."""
    with _quiet():
        program = torch.onnx.export(
            part.exported(),
            dynamo=True,
            verbose=False,
            dynamic_shapes=part.arranged(part.open_lengths),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
        )
        assert program is not None
        program.save(str(path))


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
