"""Answers LLaSO-Eval with a model whose transcripts are decoded jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from eval_suite.backends import GenerationSettings, Request, TransformersBackend

from . import CTC_WEIGHT
from .alignment import is_transcribed
from .joint_decoding import JointDecoder, joint_decoder


@dataclass(frozen=True)
class JointSettings(GenerationSettings):
    """How answers are generated, with CTC's weight in transcripts, above 0 and up to 1."""

    ctc_weight: float = CTC_WEIGHT


class JointBackend(TransformersBackend):
    """A LLaSO model that was aligned by CTC. Rows that ask for a transcript are decoded jointly, with one hypothesis.

    Args:
        model: a folder or an id on the Hub.
        settings: how to generate.
        **options: see `TransformersBackend`.
    """

    def __init__(self, model: str | Path, settings: JointSettings, **options: Any) -> None:
        super().__init__(model, settings, **options)
        self._weight = settings.ctc_weight
        self._decoder: JointDecoder | None = None

    def load(self) -> None:
        """Open processor and weights.

        Raises:
            ValueError: the model was not aligned by CTC.
        """
        super().load()
        self._decoder = joint_decoder(self.model, self.processor.tokenizer, self._weight)

    def generation_extras(self, inputs: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Return the logits processor of a batch with transcripts; replace its audio by the projection of that."""
        rows = [n for n, request in enumerate(requests) if is_transcribed(request.row.task, request.row.modality)]
        if not rows or self._decoder is None:
            return {}
        audio = self._decoder.project(inputs)
        return {"logits_processor": [SomeRows(self._decoder.for_audio([audio[row] for row in rows]), rows)]}


class SomeRows(LogitsProcessor):
    """Applies a logits processor to some rows of a batch, and leaves the others as they are.

    Args:
        inner: the processor.
        rows: numbers of its rows, in its order.
    """

    def __init__(self, inner: LogitsProcessor, rows: Sequence[int]) -> None:
        self._inner, self._rows = inner, list(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        changed = scores.clone()
        changed[self._rows] = self._inner(input_ids[self._rows], scores[self._rows])  # type: ignore[arg-type]
        return changed
