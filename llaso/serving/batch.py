"""Batches continuously: rows join and leave the key-value cache between two decoding steps.

Rows are padded on the left: each occupies the last `length` columns of the cache, and the columns before them are
masked. Position ids count from a row's own first token, so its logits are those of a batch of one up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.feature_extraction_utils import BatchFeature

from modeling_llaso.processing_llaso import stack_windows


class Batch:
    """The key-value cache of the running rows.

    Args:
        model: a `LlasoForConditionalGeneration`, in evaluation mode.
    """

    def __init__(self, model):
        self.model = model
        self.lengths: list[int] = []
        self.cache: DynamicCache | None = None

    @torch.inference_mode()
    def join(
        self, prompts: Sequence[Mapping[str, torch.Tensor] | BatchFeature]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Prefill new prompts and append them as rows.

        Args:
            prompts: the processor's output for each conversation.

        Returns:
            Logits of each prompt's next token, `(prompts, vocab_size)`, and the audio that each prompt has, projected,
            `(audio_tokens, hidden_size)`.
        """
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
        input_ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, -lengths[row] :] = prompt["input_ids"][0]
        mask = _attention_mask(lengths, max(lengths))
        # Without a configuration, sliding-window layers keep every column too; the mask does the rest.
        cache = DynamicCache()
        output = self._forward(
            cache,
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            **self._audio_inputs(prompts),
        )
        self._append(cache, lengths)
        sizes = input_ids.eq(self.model.config.audio_token_id).sum(1).tolist()
        audio = output.audio_hidden_states
        if audio is None:
            audio = output.logits.new_empty(0, self.model.config.text_config.hidden_size)
        return output.logits[:, -1], audio.split(sizes)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to every row.

        Returns:
            Logits of the tokens after them, `(rows, vocab_size)`.
        """
        assert self.cache is not None and len(tokens) == len(self.lengths)
        positions = torch.tensor(self.lengths)[:, None]
        self.lengths = [length + 1 for length in self.lengths]
        return self._forward(
            self.cache,
            input_ids=torch.tensor(tokens)[:, None],
            attention_mask=_attention_mask(self.lengths, max(self.lengths)),
            position_ids=positions,
        ).logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they used."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = None
            return
        assert self.cache is not None
        layers: list[Any] = self.cache.layers
        for layer in layers:
            kept = torch.tensor(rows, device=layer.keys.device)
            layer.keys = layer.keys[kept, :, -max(self.lengths) :]
            layer.values = layer.values[kept, :, -max(self.lengths) :]

    def _append(self, cache: DynamicCache, lengths: list[int]) -> None:
        self.lengths += lengths
        if self.cache is None:
            self.cache = cache
            return
        width = max(self.lengths)
        pairs: list[tuple[Any, Any]] = list(zip(self.cache.layers, cache.layers, strict=True))
        for layer, new in pairs:
            layer.keys = torch.cat([_pad_left(layer.keys, width), _pad_left(new.keys, width)])
            layer.values = torch.cat([_pad_left(layer.values, width), _pad_left(new.values, width)])

    def _audio_inputs(self, prompts: Sequence[Mapping[str, torch.Tensor] | BatchFeature]) -> dict[str, torch.Tensor]:
        """Gather the audio windows of all prompts, padded to the longest window; empty if no prompt has audio."""
        windows: list[torch.Tensor] = []
        for prompt in prompts:
            if "input_features" in prompt:
                # Cut here, so that no row is padded to the whole length of a long neighbour.
                cut, mask = self.model.model.cut_windows(prompt["input_features"], prompt["input_features_mask"])
                windows += [window[:, real.bool()] for window, real in zip(cut, mask, strict=True)]
        if not windows:
            return {}
        features, mask = stack_windows(windows)
        return {"input_features": features, "input_features_mask": mask}

    def _forward(self, cache: DynamicCache, **inputs: torch.Tensor) -> Any:
        device = self.model.device
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in inputs.items()}
        return self.model(**moved, cache=cache, use_cache=True, logits_to_keep=1)


def _attention_mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    """Return the mask of left-padded rows, `(rows, width)`: 1 in the last `length` columns."""
    return (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad `(rows, heads, columns, head_dim)` on the left to `width` columns."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
