"""The audio of a batch whose encoder output is on disk in whole or in part, or that has no audio at all.

It travels into the model in place of projected audio and is resolved inside the forward pass, where the weights are
whole even when they are sharded between passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from .encoder_cache import encode_windows, project_windows, stack_windows

SILENCE = 2
"""Frames of a window that is encoded for company only; the encoder makes one vector of them."""


@dataclass(frozen=True)
class KeptAudio:
    """Windows on their way into the model.

    Attributes:
        windows: of all rows: log-mel `(mels, frames)`, or, where `encoded`, the encoder's output `(positions, width)`.
        encoded: which of the two, window by window.
        in_step: run the encoder even where nothing is to be encoded, since other processes do and sharded layers are
            gathered by all of them together.
    """

    windows: list[torch.Tensor]
    encoded: list[bool]
    in_step: bool = False


def accept_kept_audio(model: LlasoForConditionalGeneration) -> RemovableHandle:
    """Let a model take `mm_encoder_outputs={"audio": KeptAudio(…)}`."""

    def resolve(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        outputs = kwargs.get("mm_encoder_outputs")
        if outputs and isinstance(outputs["audio"], KeptAudio):
            vectors = projected(model, outputs["audio"])
            kwargs = kwargs | {"mm_encoder_outputs": {"audio": BaseModelOutputWithPooling(pooler_output=vectors)}}
        return args, kwargs

    return model.model.register_forward_pre_hook(resolve, with_kwargs=True)


def projected(model: LlasoForConditionalGeneration, audio: KeptAudio) -> torch.Tensor:
    """Kept encoder output, and that of windows not kept yet, through the projector: `(audio tokens, hidden)`.

    Without any window the projector still takes part, so that its gradients are zero rather than absent.
    """
    vectors = list(audio.windows)
    new = [number for number, done in enumerate(audio.encoded) if not done]
    company = audio.in_step and not new
    if company:
        mels = model.config.audio_config.num_mel_bins
        vectors.append(torch.zeros(mels, SILENCE, device=model.device))
        new.append(len(vectors) - 1)
    if new:
        features, mask = stack_windows([vectors[number] for number in new])
        for number, output in zip(new, encode_windows(model, features, mask), strict=True):
            vectors[number] = output
    weight = model.model.multi_modal_projector.linear_1.weight
    tokens = project_windows(model, [vector.to(weight.dtype) for vector in vectors])
    return tokens[:-1] if company else tokens
