"""Runs exported ExecuTorch programs by ExecuTorch's runtime for Python, to check what a phone would compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime

from .exported_model import ExportedLlaso


class ExecuTorchLlaso(ExportedLlaso):
    """A model of ExecuTorch programs.

    Args:
        folder: what `llaso export executorch` wrote.

    Raises:
        ValueError: the folder holds no such files.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "executorch")
        # A method needs its program to be kept.
        self.programs = {part: Runtime.get().load_program(file) for part, file in self.files.items()}
        self.methods = {part: program.load_method("forward") for part, program in self.programs.items()}

    def run(self, part: str, given: dict[str, np.ndarray]) -> np.ndarray:
        return self._execute(part, given)[0]

    def decode(self, given: dict[str, np.ndarray], past: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        logits, *present = self._execute("decoder", {**given, **past})
        return logits[0, -1], dict(zip(past, present, strict=True))

    def _execute(self, part: str, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        # Outputs lie in memory that the next run writes over.
        return [
            out.numpy().copy() for out in self.methods[part].execute([torch.from_numpy(one) for one in given.values()])
        ]
