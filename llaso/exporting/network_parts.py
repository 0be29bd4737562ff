"""The three parts of a model that other runtimes run, each a module that `torch.export` takes, with open lengths.

`audio` turns log-mel windows into audio embeddings, `embed` token ids into text embeddings, and `decoder` embeddings,
with the keys and values of what came before, into logits. The program that runs them puts the audio embeddings in the
place of the placeholders, and feeds the keys and values back. Names of inputs and outputs are those that
transformers.js and optimum use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache

from modeling_llaso.compatibility_llaso import CACHE_SINCE_5_24
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

PAST = "past_key_values"
Shape = tuple[int | str, ...]
TRACED_WITH = {"windows": 2, "frames": 300, "batch": 2, "tokens": 3, "past": 5, "past + tokens": 5 + 3}
"""Sizes of the example that a part is traced with; any others may come later."""
Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, `("batch", key_value_heads, tokens, head_dim)`."""


class AudioEncoderPart(nn.Module):
    """Encodes, pools and projects log-mel windows."""

    def __init__(self, model: LlasoForConditionalGeneration):
        super().__init__()
        self.model = _without(model.model, "language_model")

    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the audio embeddings of real frames, window after window.

        Args:
            input_features: `(windows, num_mel_bins, frames)`; whole windows in `full`.
            input_features_mask: `(windows, frames)`, 1 for real frames, which come first; in `trim` only.

        Returns:
            `(audio_tokens, hidden_size)`.
        """
        encoded = self.model.audio_tower(input_features, input_features_mask)
        return self.model.project(encoded.last_hidden_state, encoded.vector_mask)


class EmbedPart(nn.Module):
    """Looks up the embeddings of a text; those of placeholders are to be replaced."""

    def __init__(self, model: LlasoForConditionalGeneration):
        super().__init__()
        self.table = model.get_input_embeddings()
        self.placeholder = model.config.audio_token_id

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed `("batch", tokens)` into `("batch", tokens, hidden_size)`."""
        return self.table(input_ids.masked_fill(input_ids.eq(self.placeholder), 0))


class DecoderPart(nn.Module):
    """The language model with its head, for the prompt and for each step after it."""

    def __init__(self, model: LlasoForConditionalGeneration):
        super().__init__()
        self.model = _without(model, "model")
        self.language_model = model.model.language_model

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, past: Cache
    ) -> tuple[torch.Tensor, Cache]:
        """Compute the logits of the last token.

        Args:
            inputs_embeds: `("batch", tokens, hidden_size)`, the tokens that are new.
            attention_mask: `("batch", past + tokens)`, 0 for padding, which comes first, otherwise 1.
            position_ids: `("batch", tokens)`.
            past: of the tokens before; of length 0 at first.

        Returns:
            Logits `("batch", 1, vocab_size)`, the placeholder's set to the lowest finite value; and `past` with the
            new tokens.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        # Written here, because how transformers makes masks differs from version to version.
        places = torch.arange(attention_mask.shape[1], device=inputs_embeds.device)
        new_places = past[0][0].shape[2] + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        seen = (places <= new_places[:, None]) & attention_mask[:, None, None, :].bool()
        mask = torch.zeros_like(seen, dtype=inputs_embeds.dtype)
        mask = mask.masked_fill(~seen, torch.finfo(inputs_embeds.dtype).min)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE_SINCE_5_24: cache},
        )
        logits = self.model.compute_logits(outputs.last_hidden_state[:, -1:])
        return logits, [(layer.keys, layer.values) for layer in outputs[CACHE_SINCE_5_24].layers]


@dataclass(frozen=True)
class NetworkPart:
    """A part with the names and shapes of its tensors.

    Attributes:
        module: the part.
        inputs: shapes of the tensors that go in, in order; an open length by its name.
        outputs: shapes of those that come out.
    """

    module: nn.Module
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]

    def exported(self, largest: Mapping[str, int] | None = None) -> ExportedProgram:
        """Trace the part by `torch.export`.

        Args:
            largest: the largest size of each open length, for a runtime that reserves its memory beforehand.
        """
        largest = largest or {}

        def open_lengths(name: str) -> dict[int, Any]:
            lengths = self.open_lengths(name)
            return {
                place: Dim.DYNAMIC(min=int(length != "past"), max=largest.get(length))
                for place, length in lengths.items()
            }

        with torch.no_grad():
            arguments, lengths = self.arranged(self._example), self.arranged(open_lengths)
            return torch.export.export(self.module, arguments, dynamic_shapes=lengths, strict=False)

    def arranged(self, leaf: Callable[[str], Any]) -> tuple[Any, ...]:
        """Make something of each input's name, nested as the module's arguments are: keys and values in pairs."""
        single = [leaf(name) for name in self.inputs if not name.startswith(PAST)]
        past = [leaf(name) for name in self.inputs if name.startswith(PAST)]
        return (*single, list(zip(past[::2], past[1::2], strict=True))) if past else tuple(single)

    def open_lengths(self, name: str) -> dict[int, str]:
        """Names of an input's open lengths, by their place in its shape."""
        return {place: size for place, size in enumerate(self.inputs[name]) if isinstance(size, str)}

    def _example(self, name: str) -> torch.Tensor:
        """An input to trace with, a tensor of its own: torch.export takes the same tensor twice for one input."""
        sizes = [TRACED_WITH[size] if isinstance(size, str) else size for size in self.inputs[name]]
        integer = name.endswith(("_ids", "_mask"))
        return torch.ones(sizes, dtype=torch.long if integer else next(self.module.parameters()).dtype)


def network_parts(model: LlasoForConditionalGeneration, one_by_one: bool = False) -> dict[str, NetworkPart]:
    """Take a model apart.

    Args:
        model: in the precision that is to be exported, on the CPU.
        one_by_one: whether a part takes one window, or one conversation, at a time. In `trim` the window then has real
            frames only, and there is no mask.

    Returns:
        `audio`, `embed` and `decoder`.
    """
    config: Any = model.config
    text, mels = config.text_config, config.audio_config.num_mel_bins
    hidden = text.hidden_size
    batch, windows = (1, 1) if one_by_one else ("batch", "windows")
    trimmed = config.audio_padding == "trim"
    features: dict[str, Shape] = {"input_features": (windows, mels, "frames" if trimmed else config.max_frames)}
    if trimmed and not one_by_one:
        features["input_features_mask"] = (windows, "frames")
    names = [f"{layer}.{kind}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
    heads, width = text.num_key_value_heads, head_dim(text)
    embeds: dict[str, Shape] = {"inputs_embeds": (batch, "tokens", hidden)}
    return {
        "audio": NetworkPart(AudioEncoderPart(model), features, {"audio_embeds": ("audio_tokens", hidden)}),
        "embed": NetworkPart(EmbedPart(model), {"input_ids": (batch, "tokens")}, embeds),
        "decoder": NetworkPart(
            DecoderPart(model),
            {
                **embeds,
                "attention_mask": (batch, "past + tokens"),
                "position_ids": (batch, "tokens"),
                **{f"{PAST}.{name}": (batch, heads, "past", width) for name in names},
            },
            {
                "logits": (batch, 1, text.vocab_size),
                **{f"present.{name}": (batch, heads, "past + tokens", width) for name in names},
            },
        ),
    }


def _without(module: Any, name: str) -> Any:
    """Copy a module without one of its parts; what it keeps is shared."""
    light = copy.copy(module)
    light._modules = {key: part for key, part in module._modules.items() if key != name}
    return light


def head_dim(text: Any) -> int:
    """The width of an attention head of a language model."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
