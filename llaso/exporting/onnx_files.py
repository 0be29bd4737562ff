"""ONNX files of a model's parts.

`llaso.exporting.onnx_model` runs them without PyTorch. The parts are traced with open lengths, so the same files take
any number of windows, prompts of any length and each step after them.
"""

from __future__ import annotations

from pathlib import Path

import onnxscript  # noqa: F401  # torch.onnx needs it, and says so only after it has traced a part
import torch

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .network_parts import NetworkPart
from .portable_files import export_parts, quiet


def export_onnx(
    model: LlasoForConditionalGeneration, processor: LlasoProcessor, out: str | Path, name: str = "LLaSO"
) -> list[Path]:
    """Write a model as ONNX files; see `export_parts`. Weights above two gigabytes lie beside, in `.onnx.data`."""
    return export_parts(model, processor, out, name, "onnx", write_part)


def write_part(part: NetworkPart, path: Path) -> None:
    """Trace a part and write its graph."""
    with quiet("torch.onnx"):
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
