"""The next token of every row, each row with its own temperature, nucleus and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Draw:
    """How one answer's tokens are chosen.

    A row's random numbers are its own, so that a seeded answer does not depend on who shares its batch.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: only the smallest set of tokens whose probability reaches it is drawn from.
        seed: of the random numbers; any by default.
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
        """The next random number, in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def next_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Choose one token a row.

    Args:
        logits: `(rows, vocab_size)`.
        draws: one a row.
    """
    tokens = logits.argmax(-1)
    rows = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if rows:
        drawn = [draws[row] for row in rows]
        tokens[rows] = _nucleus(
            logits[rows],
            logits.new_tensor([draw.temperature for draw in drawn], dtype=torch.float32),
            logits.new_tensor([draw.top_p for draw in drawn], dtype=torch.float32),
            logits.new_tensor([draw.number() for draw in drawn], dtype=torch.float32),
        )
    return tokens.tolist()


def _nucleus(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Inverse-transform sampling from each row's nucleus (Holtzman et al. 2020); all arguments a value a row."""
    scores, order = logits.float().sort(-1, descending=True)
    # Counted from the best score, no temperature is too small to divide by.
    probabilities = ((scores - scores[:, :1]) / temperature[:, None]).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < top_p[:, None]
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(-1)
    places = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)
    return order.gather(1, places.minimum(kept.sum(-1, keepdim=True) - 1))[:, 0]
