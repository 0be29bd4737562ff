"""Chooses the next token of every row, each row with its own temperature, nucleus and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Sampler:
    """Sampling settings and random numbers of one answer.

    Each row has its own random numbers, so that a seeded answer does not depend on the rest of the batch.

    Args:
        temperature: 0 takes the most likely token.
        top_p: only the smallest set of tokens whose probability reaches it is drawn from.
        seed: seed of the random numbers; drawn from the system by default.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None):
        self.temperature = temperature
        self.top_p = top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def number(self) -> float:
        """Return the next random number, in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def next_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Choose one token for each row.

    Args:
        logits: `(rows, vocab_size)`.
        samplers: one for each row.

    Returns:
        A token id for each row.
    """
    tokens = logits.argmax(-1)
    rows = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0]
    if rows:
        drawn = [samplers[row] for row in rows]
        tokens[rows] = _nucleus(
            logits[rows],
            logits.new_tensor([sampler.temperature for sampler in drawn], dtype=torch.float32),
            logits.new_tensor([sampler.top_p for sampler in drawn], dtype=torch.float32),
            logits.new_tensor([sampler.number() for sampler in drawn], dtype=torch.float32),
        )
    return tokens.tolist()


def _nucleus(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Draw from each row's nucleus by inverse transform (Holtzman et al. 2020); arguments are one value per row."""
    scores, order = logits.float().sort(-1, descending=True)
    # Relative to the best score, dividing by a tiny temperature cannot overflow to NaN.
    probabilities = ((scores - scores[:, :1]) / temperature[:, None]).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < top_p[:, None]
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(-1)
    places = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)
    return order.gather(1, places.minimum(kept.sum(-1, keepdim=True) - 1))[:, 0]
