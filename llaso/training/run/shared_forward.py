"""Lets a language model compute once what all rows of a micro-batch begin with.

The prefix and what follows it in each row lie end to end in one sequence for all layers but attention, which sees the
rows as they were padded. So every matrix multiplies fewer tokens, and the hidden states are those of the padded batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ..rows.shared_prefix import SharedPrefix
from .packed_attention import LAYERS

IMPLEMENTATIONS = {"eager": "eager_in_rows", "sdpa": "sdpa_in_rows"}
"""Attention implementations that can see rows behind a shared prefix, and the name of each form that does."""


def share_prefixes(language_model: PreTrainedModel) -> None:
    """Have a language model take `shared_prefix=…` beside a padded batch, in place; without it, it reads as before.

    Its hidden states have the places of the padded batch; at padding they are of any token, which no loss reads.

    Raises:
        ValueError: its attention takes no mask of ours, or it has layers of another kind.
    """
    config = language_model.config
    chosen, kinds = config._attn_implementation, set(getattr(config, "layer_types", None) or ())
    if chosen not in (*IMPLEMENTATIONS, *IMPLEMENTATIONS.values()):
        raise ValueError(
            f"compute.share_prefix does not go with attention {chosen!r}; set compute.attention to eager or sdpa, or "
            "compute.share_prefix=false"
        )
    if other := kinds - set(LAYERS):
        raise ValueError(
            f"compute.share_prefix: {config.model_type} has layers of kind {', '.join(sorted(other))}, which read "
            "a row in other ways than by a mask; set compute.share_prefix=false"
        )
    for name, attend, mask in (("eager", attend_eagerly, eager_mask), ("sdpa", attend_by_sdpa, sdpa_mask)):
        AttentionInterface.register(IMPLEMENTATIONS[name], attend)
        AttentionMaskInterface.register(IMPLEMENTATIONS[name], mask)
    language_model.set_attn_implementation(IMPLEMENTATIONS.get(chosen, chosen))
    forward = language_model.forward

    def forward_shared(*args: Any, shared_prefix: SharedPrefix | None = None, **kwargs: Any) -> Any:
        if shared_prefix is None:
            return forward(*args, **kwargs)
        embeds = kwargs["inputs_embeds"]
        rows, longest = embeds.shape[:2]
        places, order = (index.to(embeds.device) for index in laid_out(shared_prefix, longest))
        kwargs["inputs_embeds"] = embeds.flatten(0, 1).index_select(0, places)[None]
        kwargs["position_ids"] = (places % longest)[None]
        kwargs["attention_mask"] = mask_of(
            kwargs["attention_mask"], embeds, language_model.config._attn_implementation
        )
        outputs = forward(*args, places=places, order=order, **kwargs)
        hidden = outputs.last_hidden_state[0].index_select(0, order).view(rows, longest, -1)
        outputs.last_hidden_state = hidden
        if outputs.hidden_states is not None:
            outputs.hidden_states = (hidden,)  # the last is what losses are computed from
        return outputs

    language_model.forward = forward_shared  # type: ignore[method-assign]


def within_window(language_model: PreTrainedModel, prefix: SharedPrefix) -> bool:
    """Return whether each token of a batch sees all that come before it, however far its layers look back."""
    window = getattr(language_model.config, "sliding_window", None)
    return not window or max(prefix["row_lengths"]) <= window


def laid_out(prefix: SharedPrefix, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how a padded batch and the sequence that is computed belong together; the prefix comes first in it.

    Args:
        prefix: of the batch.
        longest: tokens of a padded row.

    Returns:
        `(computed tokens,)`, the places of the sequence's tokens in the flattened batch; and `(rows * longest,)`, the
        places of the batch's tokens in the sequence, any for padding.
    """
    tokens, lengths = prefix["tokens"], prefix["row_lengths"]
    places, order = [torch.arange(tokens)], torch.zeros(len(lengths), longest, dtype=torch.long)
    order[:, :tokens] = torch.arange(tokens)
    start = tokens
    for row, length in enumerate(lengths):
        places.append(torch.arange(row * longest + tokens, row * longest + length))
        order[row, tokens:length] = torch.arange(start, start + length - tokens)
        start += length - tokens
    return torch.cat(places), order.flatten()


def mask_of(real: torch.Tensor, embeds: torch.Tensor, implementation: str) -> torch.Tensor:
    """Return what each token of a padded batch sees: itself and the real tokens before it in its row.

    Args:
        real: `(rows, longest)`, 1 for real tokens, which come first.
        embeds: `(rows, longest, width)`.
        implementation: of attention; that of eager adds the mask to its scores.

    Returns:
        `(rows, 1, longest, longest)`.
    """
    seen = real.bool()[:, None, None].expand(-1, 1, real.shape[1], -1).tril()
    seen = seen | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)  # or padding would see nothing
    if implementation == IMPLEMENTATIONS["sdpa"]:
        return seen
    least = torch.finfo(embeds.dtype).min
    return torch.zeros(seen.shape, dtype=embeds.dtype, device=seen.device).masked_fill(~seen, least)


def attend_eagerly(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Attend as the module's own eager attention does; see `_in_rows`."""
    return _in_rows(inspect.getmodule(type(module)).eager_attention_forward, module, *args, **kwargs)  # type: ignore[union-attr]


def attend_by_sdpa(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Attend as transformers' sdpa does; see `_in_rows`."""
    return _in_rows(sdpa_attention_forward, module, *args, **kwargs)


def _in_rows(
    attend: Any,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    places: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the rows of a padded batch whose tokens come as one sequence.

    Args:
        attend: attention of a batch.
        module: the attention layer.
        query: `(1, heads, computed tokens, width)`; key and value likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: `(rows, 1, longest, longest)`.
        places: see `laid_out`; None attends over the batch as it comes.
        order: see `laid_out`.
        **kwargs: for `attend`.

    Returns:
        `(1, computed tokens, heads, width)`, and None in place of attention weights.
    """
    if places is None or order is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    assert attention_mask is not None
    rows, longest = attention_mask.shape[0], attention_mask.shape[-1]
    # index_select, since the backward pass of indexing takes fifty times as long in bf16 on a CPU.
    found = [part[0].index_select(1, order) for part in (query, key, value)]
    padded = [part.unflatten(1, (rows, longest)).transpose(0, 1) for part in found]
    seen, _ = attend(module, *padded, attention_mask, **kwargs)
    return seen.flatten(0, 1).index_select(0, places)[None], None
