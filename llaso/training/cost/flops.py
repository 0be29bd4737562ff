"""Counts one micro-batch's FLOPs and memory, operator by operator, without computing any value.

The network consists of fake tensors, which have shapes and types only. It runs one forward and one backward pass over
a micro-batch of mean shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..rows.packing import taken_frames
from ..run.answer_loss import chunked_losses
from ..run.operator_counter import OperatorCounter
from ..run.packed_attention import packed_inputs
from ..run.packed_encoder import encode_packed

ENCODER, LLM, LOGITS = "activations of the encoder", "activations of projector and LLM", "logits"
BACKWARD = "the backward pass's own"
"""Purposes by which FLOPs and memory are counted."""
COMPETING = 4096
"""Tokens against which CTC scores an audio vector, assumed: those of a few hours of transcripts."""


@dataclass(frozen=True)
class BatchShape:
    """The shape of a micro-batch whose rows are equally long.

    Attributes:
        rows: number of rows.
        text: tokens of a row that are not audio.
        answers: those of the `text` tokens that carry a loss.
        windows: audio windows of all rows together.
        frames: mel frames of a window.
        packed: rows lie end to end, and so do windows.
    """

    rows: int
    text: int
    answers: int
    windows: int
    frames: int
    packed: bool = False


def count_micro_batch(
    model: LlasoForConditionalGeneration,
    shape: BatchShape,
    bf16: bool,
    answer_only_logits: bool,
    loss_chunk: int = 0,
    llm_runs: bool = True,
) -> OperatorCounter:
    """Run one micro-batch of fake tensors forward and backward.

    Gradients of earlier micro-batches are assumed to exist; neither they nor the weights are counted.

    Args:
        model: made within the current `FakeTensorMode`, frozen and checkpointed as it is to train.
        shape: of the micro-batch.
        bf16: multiply in bf16 in the operators for which autocast does.
        answer_only_logits: run the head on answer tokens alone.
        loss_chunk: answer tokens that go through the head together, if there are more; 0 means all of them.
        llm_runs: whether the LLM answers; otherwise the audio is aligned with transcripts of `COMPETING` tokens.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    counter = OperatorCounter(model)
    config, inner = model.config, model.model
    encoder_learns = any(parameter.requires_grad for parameter in inner.audio_tower.parameters())

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with counter.on(ENCODER), torch.set_grad_enabled(encoder_learns):
            mels = config.audio_config.num_mel_bins
            vectors = torch.empty(0, 1, config.audio_config.d_model)  # text alone
            if shape.windows and shape.packed and config.audio_padding == "trim":
                features = torch.empty(mels, shape.windows * taken_frames(shape.frames))
                vectors = encode_packed(inner.audio_tower, features, [shape.frames] * shape.windows)
            elif shape.windows:
                features = torch.empty(shape.windows, mels, shape.frames)
                vectors = inner.audio_tower(features.to(inner.audio_tower.conv1.weight.dtype)).last_hidden_state
        with counter.on(LLM):
            audio = inner.multi_modal_projector(inner.multi_modal_projector.pool(vectors, None).flatten(0, 1))
        if llm_runs:
            loss = _answer_loss(model, shape, audio, counter, answer_only_logits, loss_chunk)
        else:
            with counter.on(LOGITS):
                table: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
                loss = (
                    nn.functional.linear(audio, table[:COMPETING].detach().to(audio.dtype))
                    .float()
                    .log_softmax(-1)
                    .mean()
                )
    del vectors, audio
    with counter.on(BACKWARD):
        loss.backward()
    return counter


def _answer_loss(
    model: LlasoForConditionalGeneration,
    shape: BatchShape,
    audio: torch.Tensor,
    counter: OperatorCounter,
    answer_only_logits: bool,
    loss_chunk: int,
) -> torch.Tensor:
    """Compute the loss of the LLM's answers, with what it costs counted."""
    inner = model.model
    length = shape.text + round(len(audio) / shape.rows)
    laid = (1, shape.rows * length) if shape.packed else (shape.rows, length)
    with counter.on(LLM):
        text = inner.get_input_embeddings()(torch.empty(laid, dtype=torch.long))
        places = torch.empty(*laid, 1, dtype=torch.bool)
        embeddings = text.masked_scatter(places, audio.to(text.dtype))
        apart = _apart(inner.language_model.config, shape.rows, length) if shape.packed else {}
        hidden = inner.language_model(inputs_embeds=embeddings, use_cache=False, **apart).last_hidden_state
        hidden = hidden.view(shape.rows, length, -1)
    with counter.on(LOGITS):
        answers = hidden[:, -shape.answers :] if answer_only_logits else hidden
        labels = torch.empty(shape.rows * shape.answers, dtype=torch.long)
        if 0 < loss_chunk < len(labels):
            return chunked_losses(model.compute_logits, answers.flatten(0, 1), labels, loss_chunk).mean()
        logits = model.compute_logits(answers).float()
        if not answer_only_logits:
            logits = logits[:, -shape.answers :].clone()
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels)


def _apart(config: PreTrainedConfig, rows: int, length: int) -> dict[str, Any]:
    """Return what keeps equally long rows apart; a mask is made here, since transformers looks at values for it."""
    inputs = packed_inputs(config, [length] * rows, torch.device("cpu"))
    if inputs["attention_mask"] is None:
        inputs["attention_mask"] = torch.empty(1, 1, rows * length, rows * length)
    return inputs
