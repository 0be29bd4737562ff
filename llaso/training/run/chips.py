"""Peak bf16 throughput of common GPUs, so that a rate can be given as a share of it."""

from __future__ import annotations

import re

import torch

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}
"""Dense bf16 TFLOP/s, from the manufacturers' data sheets; of two names that fit a chip, the first counts."""
WEAKER_VARIANTS = ("MIG", "Laptop")
"""Words in a chip's name that say it is less than the chip of that name."""


def chip_name(device: torch.device | str) -> str:
    """Return the name of the chip that a device is, or the kind of the device if it is no CUDA device."""
    kind = torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind.upper()


def peak_of(name: str) -> tuple[str, float] | None:
    """Return a chip's name in the table and its peak, in FLOP/s; None if it is not known."""
    if any(word in name for word in WEAKER_VARIANTS):
        return None
    known = (chip for chip in PEAK_TFLOPS if re.search(rf"\b{chip}\b", name))
    chip = next(known, None)
    return None if chip is None else (chip, PEAK_TFLOPS[chip] * 1e12)
