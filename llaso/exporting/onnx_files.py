"""ONNX files of a model's parts.

`llaso.exporting.onnx_model` runs them without PyTorch. The parts are traced with open lengths, so the same files take
any number of windows, prompts of any length and each step after them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxscript  # noqa: F401  # torch.onnx needs it, and says so only after it has traced a part
import torch

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .network_parts import NetworkPart
from .portable_files import export_parts


def export_onnx(
    model: LlasoForConditionalGeneration, processor: LlasoProcessor, out: str | Path, name: str = "LLaSO"
) -> list[Path]:
    """Write a model as ONNX files in single precision; see `export_parts`.

    Returns:
        The files of the parts. Weights of more than two gigabytes are beside them, in `.onnx.data`.
    """
    return export_parts(model, processor, out, name, "onnx", write_part, ".onnx")


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
