"""Computes the loss of answer tokens in chunks, so that the logits of one chunk at a time are in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint


def chunked_losses(
    compute_logits: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Compute the cross-entropy of each answer token; logits are computed again in the backward pass.

    Args:
        compute_logits: the LLM's head.
        hidden: states that predict the answer tokens, `(answer tokens, width)`.
        targets: ids of the answer tokens, `(answer tokens,)`.
        chunk: answer tokens that go through the head together.

    Returns:
        The losses, `(answer tokens,)`.
    """

    def losses_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(compute_logits(hidden).float(), targets, reduction="none")

    chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(losses_of, *each, use_reentrant=False, preserve_rng_state=False) for each in chunks])
