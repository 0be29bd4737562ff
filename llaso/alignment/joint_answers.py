"""Answers LLaSO-Eval with a model whose audio has a say in its transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from eval_suite.backends import GenerationSettings, Request, TransformersBackend
from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoAudioOutput

from . import CTC_WEIGHT
from .alignment import Alignment, ctc_weight_for, is_transcribed, saved_alignment
from .joint_decoding import HeardTokens, JointDecoding


@dataclass(frozen=True)
class JointSettings(GenerationSettings):
    """How answers are generated, and what weight the audio has in transcripts."""

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
        self._alignment: Alignment | None = None
        self._heard: HeardTokens | None = None

    def load(self) -> None:
        """Open processor and weights.

        Raises:
            ValueError: the model is no LLaSO, or was not aligned by CTC.
        """
        super().load()
        ctc_weight_for(self.model, self._weight)
        self._alignment = saved_alignment(self.model)
        assert self._alignment is not None
        self._heard = HeardTokens(self._alignment, self.processor.tokenizer)

    def rules(self, inputs: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Return what joins the alignment to one generation; replace the audio of its inputs by its projection."""
        rows = [n for n, request in enumerate(requests) if is_transcribed(request.row.task, request.row.modality)]
        if not rows:
            return {}
        assert self._alignment is not None and self._heard is not None
        names = ("input_features", "input_features_mask")
        audio = self.model.model.get_audio_embeds(*(inputs.pop(name, None) for name in names))
        inputs["mm_encoder_outputs"] = {"audio": LlasoAudioOutput(pooler_output=audio)}
        own = audio.split(inputs["input_ids"].eq(self.model.config.audio_token_id).sum(1).tolist())
        log_probs = [self._alignment.log_probs(own[row]) for row in rows]
        joint = JointDecoding(log_probs, self._heard, end_ids(self.model), self._weight)
        return {"logits_processor": [SomeRows(joint, rows)]}


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
