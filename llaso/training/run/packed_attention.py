"""Attention within the rows of a packed sequence, for each attention implementation that offers it.

`sdpa` becomes `sdpa_by_row`: the sequence is split and each row attends by itself, so that nothing is computed across
rows. Flash attention takes the rows' bounds; `eager` and `flex_attention` get transformers' mask, made from positions
that start again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..rows.packing import positions

BY_ROW = "sdpa_by_row"
FLASH = ("flash_attention_2", "flash_attention_3")
MASKED = ("eager", "flex_attention")
LAYERS = ("full_attention", "sliding_attention")
"""Kinds of layers whose packed form is known to be right."""
PROBE_ROWS = (5, 7)
PROBE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Share by which the hidden states of a packed row may differ from those of the row alone, through rounding."""


def attend_by_row(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' sdpa does, row by row if `row_lengths` says what the rows of the sequence are.

    Args:
        module: the attention layer.
        query: `(1, heads, tokens, width)`; key and value likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: `(1, 1, tokens, tokens)`; one of a single token stands for none.
        row_lengths: tokens of each row; None attends over the whole batch as it is.
        **kwargs: for transformers' sdpa.

    Returns:
        `(1, tokens, heads, width)`, and None in place of attention weights.
    """
    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows, start = [], 0
    masked = attention_mask is not None and attention_mask.shape[-1] > 1
    for length in row_lengths:
        one = slice(start, start + length)
        mask = attention_mask[:, :, one, one] if masked else None  # type: ignore[index]
        parts = (query[:, :, one], key[:, :, one], value[:, :, one])
        rows.append(sdpa_attention_forward(module, *parts, mask, **kwargs)[0])
        start += length
    return torch.cat(rows, dim=1), None


def attention_inputs(implementation: str, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return what attention layers take to keep rows apart without a mask; empty if they need a mask."""
    if implementation == BY_ROW:
        return {"row_lengths": list(lengths)}
    if implementation in FLASH:
        ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
        longest = max(lengths)
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {}


def packed_inputs(config: PreTrainedConfig, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return what a language model takes, besides the tokens, to read rows end to end as if each were alone.

    Args:
        config: of the language model.
        lengths: tokens of each row.
        device: of the tokens.
    """
    implementation = config._attn_implementation
    mask = None  # transformers then makes a mask from the positions, or none for flash attention
    window = getattr(config, "sliding_window", None)
    if implementation == BY_ROW and (not window or max(lengths) <= window):
        # A mask of one place keeps transformers from building one over all tokens.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {
        "position_ids": positions(lengths, device)[None],
        "attention_mask": mask,
        **attention_inputs(implementation, lengths, device),
    }


def set_packed_attention(model: PreTrainedModel) -> None:
    """Have an encoder or a language model attend in a way that can keep rows apart, in place.

    It still reads padded batches as before.

    Raises:
        ValueError: its attention, or one of its layers, has no packed form.
    """
    AttentionInterface.register(BY_ROW, attend_by_row)
    AttentionMaskInterface.register(BY_ROW, sdpa_mask)
    config = model.config
    name = config._attn_implementation
    if name not in ("sdpa", BY_ROW, *FLASH, *MASKED):
        known = ", ".join(("sdpa", *MASKED, *FLASH))
        raise ValueError(
            f"batch.packing: attention {name!r} has no packed form; set compute.attention to one of {known}, or "
            "batch.packing=false"
        )
    if name == "flex_attention" and not torch.accelerator.is_available():
        raise ValueError("batch.packing: flex_attention has no backward pass on CPU; set compute.attention=sdpa")
    if other := set(getattr(config, "layer_types", None) or ()) - set(LAYERS):
        raise ValueError(
            f"batch.packing: {config.model_type} has layers of kind {', '.join(sorted(other))}, which may carry state "
            "from one row into the next; set batch.packing=false"
        )
    if name == "sdpa":
        model.set_attn_implementation(BY_ROW)


@torch.no_grad()
def check_rows_apart(language_model: PreTrainedModel) -> None:
    """Compare a packed row with the same row alone in a language model, on a few tokens.

    Raises:
        ValueError: they differ, because the model lets rows see each other or does not start positions again.
    """
    config, device = language_model.config, language_model.device
    chosen, modes = config._attn_implementation, [module.training for module in language_model.modules()]
    if chosen in (*FLASH, "flex_attention"):
        config._attn_implementation = "eager"  # theirs may need a GPU, which the model has not reached yet
    narrow = {p.dtype for p in language_model.parameters()} - {torch.float32}
    tokens = torch.arange(1, 1 + sum(PROBE_ROWS), device=device)[None] % config.vocab_size
    try:
        language_model.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(narrow), cache_enabled=False):
            inputs = packed_inputs(config, PROBE_ROWS, device)
            packed = language_model(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
            alone = language_model(input_ids=tokens[:, PROBE_ROWS[0] :], use_cache=False).last_hidden_state
    finally:
        config._attn_implementation = chosen
        for module, mode in zip(language_model.modules(), modes, strict=True):
            module.training = mode
    error = float((packed[:, PROBE_ROWS[0] :] - alone).float().norm() / alone.float().norm())
    if not error < PROBE_ERROR[torch.bfloat16 if narrow else torch.float32]:  # NaN fails as well
        raise ValueError(
            f"batch.packing: in {config.model_type} ({type(language_model).__name__}) a row behind another gets other "
            f"hidden states than alone (off by {error:.1%}), so rows cannot be packed; set batch.packing=false"
        )
