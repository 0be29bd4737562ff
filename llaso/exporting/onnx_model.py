"""Runs exported ONNX files by ONNX Runtime and NumPy, without PyTorch or transformers.

    model = OnnxLlaso("runs/onnx")
    print(model.generate("What is said?", ["clip.wav"]))

Answers are greedy: at each step the likeliest token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .export_folder import DESCRIPTION_FILES
from .exported_model import ExportedLlaso


class OnnxLlaso(ExportedLlaso):
    """A model of ONNX files.

    Args:
        folder: what `llaso export onnx` wrote.
        providers: ONNX Runtime's execution providers, the preferred first.
        threads: used by one run; 0 for as many as there are cores.

    Attributes:
        sessions: ONNX Runtime's, of the parts.

    Raises:
        ValueError: the folder holds no such files.
    """

    description_file = DESCRIPTION_FILES["onnx"]
    command = "llaso export onnx"

    def __init__(
        self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        super().__init__(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {}
        for part, file in self.files.items():
            try:
                self.sessions[part] = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
            except Exception as error:  # ONNX Runtime's own kinds have no other parent
                raise ValueError(f"{file}: ONNX Runtime does not open it ({error})") from error

    def run(self, part: str, given: dict[str, np.ndarray]) -> np.ndarray:
        return self.sessions[part].run(None, given)[0]

    def decode(self, given: dict[str, np.ndarray], past: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        # Keys and values stay with ONNX Runtime from step to step.
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in {**given, **past}.items()
        }
        logits, *present = self.sessions["decoder"].run_with_ort_values(None, values)
        return logits.numpy()[0, -1], dict(zip(past, present, strict=True))
