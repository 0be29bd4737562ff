"""Rows of random tokens and sound as the collator takes them, and what a model learns from a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llaso.training.rows.collator import IGNORED, Example
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration


def examples(
    model: LlasoForConditionalGeneration,
    rows: Sequence[tuple[int, Sequence[int]]],
    kept: Sequence[int] = (),
    prefix: int = 0,
) -> list[Example]:
    """Make rows of random tokens and sound.

    Args:
        model: whose placeholder and windows they have.
        rows: tokens of text, and mel frames of each audio window.
        kept: rows that come with the encoder's output, and first.
        prefix: tokens that all rows begin with, besides their own.
    """
    draw = torch.Generator().manual_seed(len(rows))
    mels, whole = model.config.audio_config.num_mel_bins, model.config.audio_padding == "full"
    begin = torch.arange(1, 1 + prefix)
    made = []
    for number, (text, windows) in enumerate(rows):
        sound = [torch.randn(mels, model.config.max_frames if whole else frames, generator=draw) for frames in windows]
        tokens = sum(count_audio_tokens(one.shape[1], model.config.projector_stride) for one in sound)
        words = torch.randint(1, 250, (text,), generator=draw)
        audio = torch.full((tokens,), model.config.audio_token_id)
        ids = torch.cat([begin, words[: text // 2], audio, words[text // 2 :]])
        labels = ids.clone()
        labels[: -max(1, text // 3)] = IGNORED
        if number in kept:
            with torch.no_grad():
                sound = [model.model.encode(one[None]).last_hidden_state[0] for one in sound]
        made.append(Example(str(number), "ASR", ids, labels, sound, encoded=number in kept))
    return sorted(made, key=lambda example: not example.encoded)


def loss_and_gradients(
    model: LlasoForConditionalGeneration, batch: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    targets = batch["shift_labels"]
    inputs = {name: part for name, part in batch.items() if name not in ("ids", "tasks", "shift_labels")}
    is_answer = targets != IGNORED
    logits = model(**inputs, logits_to_keep=is_answer, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits, targets[is_answer])
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
