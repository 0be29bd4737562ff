"""Runs the encoder over windows of unequal length that lie end to end, without padding.

Every window gets the vectors that it would get alone: gaps of zeros keep the convolutions apart, positions start
again, and attention stays within a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from modeling_llaso.modeling_llaso import LlasoAudioOutput, LlasoEncoder

from ..rows.packing import members, positions, ranges_from, starts_of, taken_frames
from .packed_attention import attention_inputs


def encode_packed(tower: LlasoEncoder, features: torch.Tensor, window_frames: Sequence[int]) -> torch.Tensor:
    """Encode windows laid end to end; a frozen encoder records no graph.

    Args:
        tower: the encoder.
        features: log-mel, `(mels, frames of all)`, as `end_to_end` lays them.
        window_frames: real frames of each window.

    Returns:
        The vectors of real frames, `(1, vectors of all, d_model)`.
    """
    device = features.device
    taken = [taken_frames(frames) for frames in window_frames]
    starts = starts_of(taken)
    vectors = [vectors_of(frames) for frames in window_frames]
    is_real = torch.zeros(sum(taken), dtype=torch.bool, device=device)
    is_real[ranges_from(window_frames, starts, device)] = True
    places = ranges_from(vectors, [start // 2 for start in starts], device)

    learns = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
        hidden = nn.functional.gelu(tower.conv1(features[None].to(tower.conv1.weight.dtype)))
        hidden = hidden * is_real.to(hidden.dtype)  # the first convolution wrote into the gaps
        hidden = nn.functional.gelu(tower.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden[:, places] + tower.embed_positions.weight[positions(vectors, device)]
        hidden = nn.functional.dropout(hidden, p=tower.dropout, training=tower.training)
        mask, arguments = _window_mask(tower, hidden, vectors)
        for layer in tower.layers:
            if tower.training and tower.layerdrop > 0.0 and torch.rand([]) < tower.layerdrop:
                continue
            hidden = layer(hidden, mask, **arguments)
        return tower.layer_norm(hidden)


def vectors_of(frames: int) -> int:
    """Return the encoder vectors of a window."""
    return (frames + 1) // 2


def for_projector(vectors: torch.Tensor, lengths: Sequence[int], stride: int) -> LlasoAudioOutput:
    """Return packed vectors as the model's `mm_encoder_outputs` takes them.

    Args:
        vectors: `(1, vectors of all, d_model)`.
        lengths: vectors of each window.
        stride: vectors that the projector pools into one token; each window then starts at a multiple of it, so that
            no token pools vectors of two windows.
    """
    if stride == 1:
        return LlasoAudioOutput(last_hidden_state=vectors)
    spread = [-(-length // stride) * stride for length in lengths]
    places = ranges_from(lengths, starts_of(spread), vectors.device)
    roomy = vectors.new_zeros(1, sum(spread), vectors.shape[-1]).index_copy(1, places, vectors)
    is_real = torch.zeros(1, sum(spread), dtype=torch.bool, device=vectors.device)
    is_real[:, places] = True
    return LlasoAudioOutput(last_hidden_state=roomy, vector_mask=is_real)


def _window_mask(
    tower: LlasoEncoder, hidden: torch.Tensor, vectors: Sequence[int]
) -> tuple[torch.Tensor | None, dict[str, object]]:
    """Return the mask that keeps attention within a window, or what replaces it, for the encoder's attention."""
    arguments = attention_inputs(tower.config._attn_implementation, vectors, hidden.device)
    if arguments:
        return None, arguments
    window = members(vectors, hidden.device)
    if tower.config._attn_implementation == "eager":
        across = window[:, None] != window
        nothing = torch.zeros(across.shape, dtype=hidden.dtype, device=hidden.device)
        return nothing.masked_fill(across, torch.finfo(hidden.dtype).min)[None, None], {}

    def same_window(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return window[query] == window[key]

    mask = create_bidirectional_mask(
        config=tower.config, inputs_embeds=hidden, attention_mask=None, and_mask_function=same_window
    )
    return mask, {}
