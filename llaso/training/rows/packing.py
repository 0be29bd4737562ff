"""Lays the rows of a micro-batch end to end instead of padding them to the longest.

A packed batch holds one sequence of tokens and the lengths of its rows. Audio windows of unequal length are laid end
to end, too. `run/packed_forward.py` keeps rows and windows apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypedDict

import torch


class Packed(TypedDict, total=False):
    """What the model has to know of a packed batch; numbers of tokens and frames are plain integers.

    Attributes:
        row_lengths: tokens of each row, in the order of the sequence.
        features: log-mel of windows of unequal length, `(mels, frames)`, as `end_to_end` lays them.
        window_frames: real frames of each of those windows.
        kept: the encoder's output for the windows that are kept, `(vectors, width)`; they come before all others.
        kept_vectors: vectors of each of those windows.
    """

    row_lengths: list[int]
    features: torch.Tensor
    window_frames: list[int]
    kept: torch.Tensor
    kept_vectors: list[int]


def shifted(labels: Sequence[torch.Tensor], ignored: int) -> torch.Tensor:
    """Return the label of each token's successor in its own row, rows end to end: `(1, tokens)`."""
    return torch.cat([torch.nn.functional.pad(row[1:], (0, 1), value=ignored) for row in labels])[None]


def taken_frames(frames: int) -> int:
    """Return a window's frames and the one or two zero frames behind it: the next window starts at an even frame.

    The encoder's second convolution reads every other frame and one beside it on each side. With an even start, its
    outputs are those of the window alone, and the gap keeps both convolutions from reading another window.
    """
    return frames + 2 - frames % 2


def end_to_end(windows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lay log-mel windows, `(mels, frames)` each, end to end with gaps of zeros: `(mels, frames of all)`."""
    gapped = [torch.nn.functional.pad(w, (0, taken_frames(w.shape[1]) - w.shape[1])) for w in windows]
    return torch.cat(gapped, dim=1)


def ranges_from(lengths: Sequence[int], starts: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Return so many places from each start on, one row after another: `(places of all,)`."""
    return torch.cat([torch.arange(s, s + n, device=device) for n, s in zip(lengths, starts, strict=True)])


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Return where each of several rows begins that lie end to end."""
    return list(itertools.accumulate(lengths, initial=0))[:-1]


def positions(lengths: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Return positions that start again at 0 with every row: `(tokens of all,)`."""
    return torch.cat([torch.arange(length, device=device) for length in lengths])


def members(lengths: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Return for every token the number of its row: `(tokens of all,)`."""
    rows = torch.arange(len(lengths), device=device)
    return rows.repeat_interleave(torch.tensor(lengths, device=device), output_size=sum(lengths))
