"""Finds the tokens that all rows of a micro-batch begin with: LLaSO's system prompt, and more if they ask the same.

`run/shared_forward.py` computes them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

MOST_COMPUTED = 0.9
"""Share of a padded batch's tokens above which a prefix is not computed once: laying rows out costs time as well."""


class SharedPrefix(TypedDict):
    """What the model has to know of a micro-batch whose rows begin alike; plain integers, so that no GPU waits.

    Attributes:
        tokens: number of tokens that all rows begin with; at least one less than the shortest row has.
        row_lengths: tokens of each row, its prefix included.
    """

    tokens: int
    row_lengths: list[int]


def shared_prefix_of(rows: Sequence[torch.Tensor], audio_token_id: int) -> SharedPrefix:
    """Find what rows of tokens, `(tokens,)` each, begin with.

    It ends before the first audio, whose placeholders do not tell what is heard, and leaves each row a token.
    """
    lengths = [len(row) for row in rows]
    first = rows[0][: min(lengths) - 1]
    alike = first != audio_token_id
    for row in rows[1:]:
        alike = alike & (row[: len(first)] == first)
    return {"tokens": int(alike.long().cumprod(0).sum()), "row_lengths": lengths}


def count_computed(prefix: SharedPrefix) -> int:
    """Count the tokens that are computed if the prefix is computed once."""
    return sum(prefix["row_lengths"]) - (len(prefix["row_lengths"]) - 1) * prefix["tokens"]


def is_worth_it(prefix: SharedPrefix) -> bool:
    """Return whether computing the prefix once spares enough of the padded batch, its padding included."""
    lengths = prefix["row_lengths"]
    return prefix["tokens"] > 0 and count_computed(prefix) <= MOST_COMPUTED * len(lengths) * max(lengths)
