"""ExecuTorch programs of a model's parts, lowered to XNNPACK, which computes on processors of phones and laptops.

ExecuTorch reserves the memory of a program when it is loaded, so open lengths have limits. XNNPACK takes one open
length in a tensor, so windows and conversations come one at a time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .executorch_model import load_program
from .network_parts import NetworkPart
from .portable_files import export_parts, quiet


def export_executorch(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    out: str | Path,
    name: str = "LLaSO",
    context: int = 1024,
) -> list[Path]:
    """Write a model as ExecuTorch programs; see `export_parts`.

    Raises:
        ValueError: the model is none that was tried, or takes fewer tokens than `context`.
    """
    most = model.config.text_config.max_position_embeddings
    if context > most:
        raise ValueError(
            f"a context of {context:,} tokens was asked for, and the language model takes {most:,} tokens at most"
        )
    largest = {length: context for length in ("tokens", "past", "past + tokens")}
    write = partial(write_part, largest={**largest, "frames": model.config.max_frames})
    return export_parts(model, processor, out, name, "executorch", write, context)


def write_part(part: NetworkPart, path: Path, largest: dict[str, int]) -> None:
    """Trace a part, lower it, write the program and load it once, which shows that its memory was planned right.

    Args:
        part: takes windows or conversations one by one.
        path: the file.
        largest: the largest size of each open length.
    """
    # Without mkldnn's own rule for small convolutions, which would bound the frames at what the example has.
    with quiet("torch", "executorch"), torch.backends.mkldnn.flags(enabled=False):
        lowered = to_edge_transform_and_lower(part.exported(largest), partitioner=[XnnpackPartitioner()])
        program = lowered.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)
    load_program(path)
