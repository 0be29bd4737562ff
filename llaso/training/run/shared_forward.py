"""Lets a language model compute once what all rows of a micro-batch begin with.

The prefix and what follows it in each row are laid end to end in one sequence. A mask lets every row see the prefix
and itself, and positions go on from the prefix in each row, so the hidden states are those of the rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..rows.shared_prefix import SharedPrefix, computed

MASKED = ("eager", "sdpa")
"""Attention implementations that take any mask."""


def can_share(language_model: PreTrainedModel) -> bool:
    """Return whether a language model can read rows behind a shared prefix: attention over all tokens, by any mask."""
    config = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    return config._attn_implementation in MASKED and kinds <= {"full_attention"}


def share_prefixes(language_model: PreTrainedModel) -> None:
    """Have a language model take `shared_prefix=…` beside a padded batch, in place; without it, it reads as before.

    Its hidden states have the places of the padded batch, with zeros at those of padding.
    """
    forward = language_model.forward

    def forward_shared(*args: Any, shared_prefix: SharedPrefix | None = None, **kwargs: Any) -> Any:
        if shared_prefix is None:
            return forward(*args, **kwargs)
        embeds, implementation = kwargs["inputs_embeds"], language_model.config._attn_implementation
        places, from_row = laid_out(shared_prefix, embeds.shape[1])
        places, from_row = places.to(embeds.device), from_row.to(embeds.device)
        tokens = shared_prefix["tokens"]
        kwargs["inputs_embeds"] = embeds.flatten(0, 1)[places][None]
        kwargs["position_ids"] = (places % embeds.shape[1])[None]
        mask = sees(from_row, tokens)
        if implementation == "eager":  # which adds the mask to the scores
            least = torch.finfo(embeds.dtype).min
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(~mask, least)
        kwargs["attention_mask"] = mask[None, None]
        outputs = forward(*args, **kwargs)
        outputs.last_hidden_state = hidden = in_rows(outputs.last_hidden_state[0], places, tokens, embeds.shape)
        if outputs.hidden_states is not None:
            outputs.hidden_states = (hidden,)  # the last is what losses are computed from
        return outputs

    language_model.forward = forward_shared  # type: ignore[method-assign]


def laid_out(prefix: SharedPrefix, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order in which tokens of a padded batch are computed.

    Args:
        prefix: of the batch.
        longest: tokens of a padded row.

    Returns:
        `(computed tokens,)` each: the places in the flattened batch, and the rows they belong to. The prefix comes
        first, from row 0.
    """
    tokens, lengths = prefix["tokens"], prefix["row_lengths"]
    places = [torch.arange(tokens)]
    places += [torch.arange(row * longest + tokens, row * longest + length) for row, length in enumerate(lengths)]
    rows = [torch.zeros(tokens, dtype=torch.long)]
    rows += [torch.full((length - tokens,), row) for row, length in enumerate(lengths)]
    return torch.cat(places), torch.cat(rows)


def sees(from_row: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return which token (first dimension) sees which: itself, and earlier ones of its row and of the prefix.

    Args:
        from_row: `(computed tokens,)`, the row of each.
        tokens: of the prefix, which comes first.
    """
    own = from_row[:, None] == from_row
    own[:, :tokens] = True
    return own.tril()


def in_rows(hidden: torch.Tensor, places: torch.Tensor, tokens: int, shape: torch.Size) -> torch.Tensor:
    """Put hidden states, `(computed tokens, width)`, into the places of the padded batch, `(rows, longest, width)`."""
    rows, longest = shape[:2]
    padded = hidden.new_zeros(rows * longest, hidden.shape[-1]).index_copy(0, places, hidden)
    padded = padded.view(rows, longest, -1)
    prefix = hidden[:tokens].expand(rows, -1, -1)
    return torch.cat([prefix, padded[:, tokens:]], dim=1)


def saves_time(prefix: SharedPrefix, token: float, pair: float) -> bool:
    """Return whether computing the prefix once takes less arithmetic than the padded batch.

    Every token of the one sequence is multiplied with every other, so many long rows behind a short prefix take more.

    Args:
        prefix: of the batch.
        token: FLOPs of a token.
        pair: FLOPs of a pair of tokens in attention.
    """
    lengths = prefix["row_lengths"]
    padded, once = len(lengths) * max(lengths), computed(prefix)
    return token * once + pair * once**2 < token * padded + pair * padded * max(lengths)
