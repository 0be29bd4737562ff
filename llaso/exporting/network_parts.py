"""The three parts of a model that other runtimes run, each a module that `torch.export` takes, with open lengths.

`audio` turns log-mel windows into audio embeddings, `embed` token ids into text embeddings, and `decoder` embeddings,
with the keys and values of what came before, into logits. Whoever runs them puts the audio embeddings in the place of
the placeholders, and feeds the keys and values back. Names of inputs and outputs are those that transformers.js and
optimum use.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache

from modeling_llaso.compatibility_llaso import CACHE_SINCE_5_24
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, `(batch, key_value_heads, tokens, head_dim)`."""


class AudioPart(nn.Module):
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
        """Embed `(batch, tokens)` into `(batch, tokens, hidden_size)`."""
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
            inputs_embeds: `(batch, tokens, hidden_size)`, the tokens that are new.
            attention_mask: `(batch, past + tokens)`, 0 for padding, which comes first, otherwise 1.
            position_ids: `(batch, tokens)`.
            past: of the tokens before; of length 0 at first.

        Returns:
            Logits `(batch, 1, vocab_size)`, the placeholder's the least there is; and `past` with the new tokens.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        # Written here, because how transformers makes masks differs from version to version.
        places = torch.arange(attention_mask.shape[1], device=inputs_embeds.device)
        new_places = places[past[0][0].shape[2] :]
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
    """A part with what `torch.export` needs to know of it.

    Attributes:
        module: the part.
        arguments: an example; every length in it may be another.
        lengths: names of the open dimensions of each argument, nested as the arguments are.
        inputs: names of the tensors that go in, in order.
        outputs: names of those that come out.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    lengths: dict[str, Any]
    inputs: list[str]
    outputs: list[str]

    def exported(self) -> ExportedProgram:
        """Trace the part."""
        with torch.no_grad():
            return torch.export.export(self.module, self.arguments, dynamic_shapes=_open(self.lengths), strict=False)


def _open(lengths: Any) -> Any:
    """Replace the names of dimensions by `torch.export`'s mark of an open one."""
    if isinstance(lengths, str):
        return Dim.DYNAMIC
    if isinstance(lengths, dict):
        return {key: _open(value) for key, value in lengths.items()}
    return type(lengths)(_open(value) for value in lengths)


def network_parts(model: LlasoForConditionalGeneration) -> dict[str, NetworkPart]:
    """Take a model apart.

    Args:
        model: in the precision that is to be exported, on the CPU.

    Returns:
        `audio`, `embed` and `decoder`.
    """
    config: Any = model.config
    text = config.text_config
    hidden, layers, width = text.hidden_size, text.num_hidden_layers, _head_dim(text)
    trims = config.audio_padding == "trim"
    frames = 300 if trims else config.max_frames
    mels = torch.zeros(2, config.audio_config.num_mel_bins, frames, dtype=model.dtype)
    mask = torch.ones(2, frames, dtype=torch.long)
    mask[1, 200:] = 0
    open_mels = {"input_features": {0: "windows"} | ({2: "frames"} if trims else {})}
    audio = NetworkPart(
        module=AudioPart(model),
        arguments=(mels, mask) if trims else (mels,),
        lengths=open_mels | ({"input_features_mask": {0: "windows", 1: "frames"}} if trims else {}),
        inputs=["input_features"] + ["input_features_mask"] * trims,
        outputs=["audio_embeds"],
    )
    embed = NetworkPart(
        module=EmbedPart(model),
        arguments=(torch.zeros(2, 3, dtype=torch.long),),
        lengths={"input_ids": {0: "batch", 1: "tokens"}},
        inputs=["input_ids"],
        outputs=["inputs_embeds"],
    )
    before = (2, text.num_key_value_heads, 5, width)
    open_past = {0: "batch", 2: "past"}
    decoder = NetworkPart(
        module=DecoderPart(model),
        arguments=(
            torch.zeros(2, 3, hidden, dtype=model.dtype),
            torch.ones(2, 5 + 3, dtype=torch.long),
            torch.arange(5, 5 + 3).repeat(2, 1),
            # A tensor of its own for each: torch.export takes the same tensor twice for one input.
            [tuple(torch.zeros(before, dtype=model.dtype) for _ in range(2)) for _ in range(layers)],
        ),
        lengths={
            "inputs_embeds": {0: "batch", 1: "tokens"},
            "attention_mask": {0: "batch", 1: "past + tokens"},
            "position_ids": {0: "batch", 1: "tokens"},
            "past": [(open_past, open_past)] * layers,
        },
        inputs=["inputs_embeds", "attention_mask", "position_ids", *_cache_names("past_key_values", layers)],
        outputs=["logits", *_cache_names("present", layers)],
    )
    return {"audio": audio, "embed": embed, "decoder": decoder}


def _without(module: Any, name: str) -> Any:
    """Copy a module without one of its parts; what it keeps is shared."""
    light = copy.copy(module)
    light._modules = {key: part for key, part in module._modules.items() if key != name}
    return light


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _head_dim(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
