"""Counts the useful FLOPs of a training step by formula, from the lengths of its rows and windows.

Every matrix multiplies each token or vector once forward, once more for the gradient of its input, and once more for
its own if it learns. Attention multiplies every pair of a row, masked or not, as PyTorch counts it. Left out are
padding and what is computed twice to save memory: batches, packing and checkpointing change the seconds of a step, not
its FLOPs. A prefix that several rows share counts once, if it is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modeling_llaso.modeling_llaso import LlasoEncoder, LlasoForConditionalGeneration

from ..recipe.recipe import Recipe
from .packed_attention import LAYERS

Count = torch.Tensor | float
PRODUCT = 2
"""FLOPs of a multiplication and an addition."""


class StepFlops:
    """Counts the FLOPs of micro-batches, without making a GPU wait.

    The gradient of the LLM's input is counted even if nothing before the LLM learns.

    Args:
        model: with its parts frozen and adapted as the recipe says.
        recipe: of the run.
        competing: tokens against which CTC scores an audio vector.

    Attributes:
        known: whether the formula knows the LLM's arithmetic; it does not with experts, or with layers that are not
            attention.
    """

    def __init__(self, model: LlasoForConditionalGeneration, recipe: Recipe, competing: int = 0) -> None:
        self.model, self.recipe, self.competing = model, recipe, competing
        self.known = _is_known(model)
        self._found: dict[tuple[bool, ...], dict[str, float]] = {}

    @property
    def each(self) -> dict[str, float]:
        """FLOPs of one frame, vector, token, …, by name, with the parts that learn now."""
        inner = self.model.model
        learning = tuple(_learns(p) for p in (inner.audio_tower, inner.multi_modal_projector, inner.language_model))
        if learning not in self._found:
            self._found[learning] = _flops_of_each(self.model, self.recipe, self.competing)
        return self._found[learning]

    def of_batch(
        self, inputs: Mapping[str, Any], answers: Count, teacher_inputs: Mapping[str, Any], aligned: Count = 0
    ) -> Count:
        """Return the FLOPs of a micro-batch, forward and backward, on its device.

        Args:
            inputs: of the model.
            answers: tokens that carry a loss.
            teacher_inputs: from `TeacherCollator`.
            aligned: audio vectors that are aligned with a transcript.
        """
        if not self.known:
            return 0
        config, ids = self.model.config, inputs["input_ids"]
        packed = inputs.get("packed", {})
        rows = _tensor(packed["row_lengths"], ids) if packed else inputs["attention_mask"].sum(1)
        frames = self._frames(inputs)
        vectors = (frames + 1) // 2
        counts: dict[str, Count] = {
            "frames": frames.sum(),
            "vectors": vectors.sum(),
            "vector pairs": vectors.square().sum(),
            "audio tokens": (ids == config.audio_token_id).sum(),
            "tokens": rows.sum(),
            "token pairs": rows.square().sum(),
            "logits": answers if self.recipe.compute.answer_only_logits else rows.sum(),
            "aligned": aligned,
        }
        if prefix := inputs.get("shared_prefix"):
            repeats = len(prefix["row_lengths"]) - 1
            counts["tokens"] = counts["tokens"] - repeats * prefix["tokens"]
        if teacher_inputs:
            lengths = teacher_inputs.get("teacher_lengths")
            rows = teacher_inputs["teacher_mask"].sum(1) if lengths is None else _tensor(lengths, ids)
            counts |= {
                "taught tokens": rows.sum(),
                "taught pairs": rows.square().sum(),
                "taught logits": teacher_inputs["teacher_answers"].sum(),
            }
        each = self.each
        total: Count = 0
        for name, count in counts.items():
            total = total + each[name] * (count.double() if isinstance(count, torch.Tensor) else count)
        return total

    def _frames(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the frames of each window that the encoder hears; a whole window if padding counts as sound."""
        ids, packed = inputs["input_ids"], inputs.get("packed", {})
        found = [_tensor(packed.get("window_frames", ()), ids)]
        if (features := inputs.get("input_features")) is not None:
            heard, config = inputs["input_features_mask"].sum(1), self.model.config
            whole = config.audio_padding == "full" and features.shape[-1] == config.max_frames
            found.append(torch.full_like(heard, features.shape[-1]) if whole else heard)
        return torch.cat(found)


def _flops_of_each(model: LlasoForConditionalGeneration, recipe: Recipe, competing: int) -> dict[str, float]:
    encoder, projector, llm = model.model.audio_tower, model.model.multi_modal_projector, model.model.language_model
    text = model.config.text_config
    encoder_learns, projector_learns = _learns(encoder), _learns(projector)
    answers = recipe.optimizer.ctc_weight < 1  # or the LLM does not run
    heads = text.num_attention_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    pair = 2 * PRODUCT * text.num_hidden_layers * heads  # a query and a key, a probability and a value
    return {
        **_of_encoder(encoder),
        "audio tokens": _matrices(projector.linear_1, encoder_learns)
        + _matrices(projector.linear_2, encoder_learns or projector_learns),
        "tokens": _matrices(llm, through=True) * answers,
        "token pairs": 3 * pair * answers,
        "logits": _matrices(model.lm_head, through=True) * answers,
        "aligned": 2 * PRODUCT * text.hidden_size * competing,  # the embeddings do not learn from it
        "taught tokens": _matrices(llm, through=False, learns=False),
        "taught pairs": pair,
        "taught logits": _matrices(model.lm_head, through=False, learns=False),
    }


def _of_encoder(encoder: LlasoEncoder) -> dict[str, float]:
    """Return the FLOPs of a frame, a vector and a pair of vectors; below what learns first, no gradient is needed."""
    first, second = encoder.conv1, encoder.conv2
    learns = _learns(first) or _learns(second)
    vectors = _convolution(second) * (1 + _learns(second) + _learns(first))
    pairs = 0.0
    layers: Any = encoder.layers
    for layer in layers:
        attention = layer.self_attn
        learns = learns or _learns(layer.self_attn_layer_norm)
        read = (attention.q_proj, attention.k_proj, attention.v_proj)
        vectors += sum(_matrices(projection, learns) for projection in read)
        learns = learns or any(map(_learns, read))
        pairs += 2 * PRODUCT * encoder.config.d_model * (3 if learns else 1)
        for module in (attention.out_proj, layer.final_layer_norm, layer.fc1, layer.fc2):
            vectors += _matrices(module, learns)
            learns = learns or _learns(module)
    frames = _convolution(first) * (1 + _learns(first))  # the log-mel needs no gradient
    return {"frames": frames, "vectors": vectors, "vector pairs": pairs}


def _is_known(model: LlasoForConditionalGeneration) -> bool:
    """Return whether an LLM multiplies by linear layers and attention alone."""
    llm, config = model.model.language_model, model.config.text_config
    if set(getattr(config, "layer_types", None) or ()) - set(LAYERS):
        return False
    others = (m for m in llm.modules() if not isinstance(m, nn.Linear | nn.Embedding))
    return not any(p.ndim > 1 for module in others for p in module.parameters(recurse=False))


def _matrices(module: nn.Module, through: bool, learns: bool | None = None) -> float:
    """Return the FLOPs of one token in all linear layers of a module.

    Args:
        module: with its linear layers.
        through: whether gradients pass through to its input.
        learns: whether its layers do; None means that each layer knows.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return sum(
        PRODUCT
        * layer.in_features
        * layer.out_features
        * (1 + through + (layer.weight.requires_grad if learns is None else learns))
        for layer in layers
    )


def _convolution(layer: nn.Module) -> float:
    """Return the FLOPs of one output position."""
    assert isinstance(layer, nn.Conv1d)
    return PRODUCT * layer.in_channels * layer.out_channels * layer.kernel_size[0]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tensor(lengths: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(lengths, dtype=torch.long, device=like.device)
