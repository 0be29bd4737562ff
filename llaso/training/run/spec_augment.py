"""Hides stretches of the log-mel while training: SpecAugment (arXiv 1904.08779).

A hidden place is 0, about the middle of Whisper's log-mel. What is hidden depends on the seed, the step and the
micro-batch's place in the step, over all processes, so that a resumed run hides the same on any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llaso_common.audio import MEL_FRAMES_PER_SECOND

from ..recipe.recipe import SpecAugmentChoice


def hide_stretches(windows: Sequence[torch.Tensor], choice: SpecAugmentChoice, generator: torch.Generator) -> None:
    """Set stretches of time and bands of mel bins to 0, in place.

    Args:
        windows: log-mels, `(mels, frames)` each, without padding.
        choice: how much is hidden.
        generator: draws places and widths, on the CPU.
    """

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    widest_time = round(choice.time_mask_seconds * MEL_FRAMES_PER_SECOND)
    for window in windows:
        mels, frames = window.shape
        expected = choice.time_masks_per_second * frames / MEL_FRAMES_PER_SECOND
        count = int(expected) + int(torch.rand((), generator=generator) < expected % 1)
        for _ in range(count):
            width = draw(min(widest_time, frames) + 1)
            start = draw(frames - width + 1)
            window[:, start : start + width] = 0
        for _ in range(choice.mel_masks):
            width = draw(round(choice.mel_mask_share * mels) + 1)
            start = draw(mels - width + 1)
            window[start : start + width] = 0
