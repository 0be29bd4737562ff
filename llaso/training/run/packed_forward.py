"""Lets a model read packed batches: a hook turns `packed` into what the encoder and the language model take.

The hook runs inside the model's forward pass, so that wrappers for several processes see an ordinary call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers.integrations import is_deepspeed_zero3_enabled

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration, LlasoModel

from ..rows.packing import Packed
from .packed_attention import check_rows_apart, packed_inputs, set_packed_attention
from .packed_encoder import encode_packed, for_projector, vectors_of


def use_packing(
    model: LlasoForConditionalGeneration, encoding: Callable[[], AbstractContextManager] = nullcontext
) -> RemovableHandle:
    """Have a model take `packed=…` beside `input_ids` `(1, tokens)`, in place; without it, it reads as before.

    Args:
        model: its attention must have a packed form.
        encoding: returns a context in which the encoder runs, to measure it.

    Returns:
        A handle whose `remove` takes this back.

    Raises:
        ValueError: the model's rows cannot be kept apart; the message names what does not allow it.
    """
    for part in (model.model.audio_tower, model.model.language_model):
        set_packed_attention(part)
    if not is_deepspeed_zero3_enabled() and model.device.type != "meta":  # else the weights are not here
        check_rows_apart(model.model.language_model)

    def unpack(module: LlasoModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        packed: Packed | None = kwargs.pop("packed", None)
        if packed is None:
            return args, kwargs
        kwargs |= packed_inputs(module.language_model.config, packed["row_lengths"], kwargs["input_ids"].device)
        with encoding():
            audio = packed_audio(module, packed)
        if audio is not None:
            kwargs["mm_encoder_outputs"] = {"audio": audio}
        return args, kwargs

    return model.model.register_forward_pre_hook(unpack, with_kwargs=True)


def packed_audio(model: LlasoModel, packed: Packed) -> Any:
    """Return the encoder's output for all windows of a packed batch, kept ones first; None if it has none."""
    vectors, lengths = [], []
    if "kept" in packed:
        vectors.append(packed["kept"][None])
        lengths += packed["kept_vectors"]
    if "features" in packed:
        encoded = encode_packed(model.audio_tower, packed["features"], packed["window_frames"])
        vectors.append(encoded)
        lengths += [vectors_of(frames) for frames in packed["window_frames"]]
    if not vectors:
        return None
    together = torch.cat([part.to(vectors[-1].dtype) for part in vectors], dim=1)
    return for_projector(together, lengths, model.config.projector_stride)
