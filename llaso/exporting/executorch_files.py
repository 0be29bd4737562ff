"""ExecuTorch programs of a model's parts, for phones and other small machines.

ExecuTorch plans its memory ahead, so the lengths of prompts and answers have a limit that is set at export, and the
programs take one window of audio and one conversation at a time. What XNNPACK computes is given to it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .network_parts import NetworkPart
from .portable_files import export_parts

MOST_TOKENS = 2048
"""Tokens of a prompt with its answer, if no other number is asked for."""


def export_executorch(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    out: str | Path,
    name: str = "LLaSO",
    most_tokens: int = MOST_TOKENS,
) -> list[Path]:
    """Write a model as ExecuTorch programs in single precision; see `export_parts`.

    Args:
        most_tokens: of a prompt with its answer, at most; memory for so many is taken whatever the prompt.
    """
    most_tokens = min(most_tokens, model.config.text_config.max_position_embeddings)
    # The last token of an answer is not read, so `past` never holds all.
    most = {"tokens": most_tokens - 1, "past": most_tokens - 1, "past + tokens": most_tokens}
    most["frames"] = model.config.max_frames

    def write_part(part: NetworkPart, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = to_edge_transform_and_lower(part.exported(most), partitioner=[XnnpackPartitioner()])
            path.write_bytes(program.to_executorch().buffer)

    return export_parts(
        model, processor, out, name, "executorch", write_part, ".pte", one_by_one=True, max_tokens=most_tokens
    )
