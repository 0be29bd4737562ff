"""Tells whether this machine computes in half precision, or only takes a hundred times as long for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")
"""Of processors, as `torch.cpu.get_capabilities` names them."""


def computes_in_bf16(device: str | None = None) -> bool:
    """Tell whether a device multiplies bf16 in hardware.

    Args:
        device: "cpu", "cuda", …; by default the GPU, or without one the processor.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "other" if torch.accelerator.is_available() else "cpu"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    # Old versions of torch do not tell; fp32 is never slow.
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in BF16_INSTRUCTIONS)


def in_fp32_if_faster(model: Any) -> Any:
    """Return a model whose weights are in half precision in fp32 if it is on a processor that lacks bf16.

    Args:
        model: of transformers; changed in place. A quantized one stays as it is.
    """
    import torch

    slow = model.device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16)
    if slow and not getattr(model, "is_quantized", False) and not computes_in_bf16("cpu"):
        return model.float()
    return model
