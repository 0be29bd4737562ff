"""Runs exported ExecuTorch programs in Python, as a phone would run them.

    model = ExecutorchLlaso("runs/executorch")
    print(model.generate("What is said?", ["clip.wav"]))

Answers are greedy: at each step the likeliest token. ExecuTorch's Python runtime takes and gives tensors of PyTorch;
its runtimes for C++, Java and Swift need no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime

from .export_folder import DESCRIPTION_FILES
from .exported_model import ExportedLlaso


def load_program(file: Path) -> Any:
    """Load a program's only method.

    Raises:
        ValueError: ExecuTorch does not load it.
    """
    try:
        return Runtime.get().load_program(str(file)).load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"{file}: ExecuTorch does not load this program ({error}); its reason is above") from error


class ExecutorchLlaso(ExportedLlaso):
    """A model of ExecuTorch programs.

    Args:
        folder: what `llaso export executorch` wrote.

    Attributes:
        methods: ExecuTorch's, of the parts.

    Raises:
        ValueError: the folder holds no such files.
    """

    description_file = DESCRIPTION_FILES["executorch"]
    command = "llaso export executorch"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.methods = {part: load_program(file) for part, file in self.files.items()}

    def run(self, part: str, given: dict[str, np.ndarray]) -> np.ndarray:
        return self._executed(part, given)[0].numpy()

    def decode(self, given: dict[str, np.ndarray], past: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        logits, *present = self._executed("decoder", {**given, **past})
        return logits.numpy()[0, -1], dict(zip(past, present, strict=True))

    def _executed(self, part: str, given: dict[str, Any]) -> list[torch.Tensor]:
        # ExecuTorch expects a tensor's own strides, which an array of length 0 has not.
        tensors = [torch.as_tensor(value).clone(memory_format=torch.contiguous_format) for value in given.values()]
        return [output.clone() for output in self.methods[part].execute(tensors)]  # the next run reuses their memory
