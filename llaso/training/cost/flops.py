"""Counts one micro-batch's FLOPs and memory, operator by operator, without computing any value.

The network consists of fake tensors, which have shapes and types only. It runs one forward and one backward pass over
a micro-batch of mean shape.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedConfig

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..rows.packing import taken_frames
from ..run.answer_loss import chunked_losses
from ..run.packed_attention import packed_inputs
from ..run.packed_encoder import encode_packed

ENCODER, LLM, LOGITS = "activations of the encoder", "activations of projector and LLM", "logits"
BACKWARD, COPIES = "the backward pass's own", "weights copied to bf16 for the arithmetic"
"""Purposes by which FLOPs and memory are counted."""
COMPETING = 4096
"""Tokens against which CTC scores an audio vector, assumed: those of a few hours of transcripts."""


def _attention_flops(query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> int:
    """Count the products of queries and keys, and of probabilities and values."""
    return 4 * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]


def _attention_backward_flops(_: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *__: Any, **___: Any) -> int:
    """Count the gradients of both products, without what a kernel may compute again."""
    return 2 * _attention_flops(query, key)


FLOPS: dict[Any, Callable[..., int]] = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""PyTorch's own count of every operator that multiplies, and the one attention it leaves out."""


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


class OperatorCounter(TorchDispatchMode):
    """Counts FLOPs, and the bytes of every tensor that is alive, by purpose.

    Attributes:
        flops: by purpose.
        live: bytes by purpose, now.
        peak: bytes by purpose, at the moment when their total is largest.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.purpose = ""
        self.weights = {_storage(p) for p in model.parameters()}
        self.known = self.weights | {_storage(p.grad) for p in model.parameters() if p.grad is not None}

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Count the operators within the block for `purpose`."""
        self.purpose = purpose
        with self:
            yield

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if packet in FLOPS:
            self.flops[self.purpose] += FLOPS[packet](*args, **(kwargs or {}), out_val=out)
        copies = packet is torch.ops.aten._to_copy and _storage(args[0]) in self.weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor, COPIES if copies else self.purpose)
        return out

    def _enter(self, tensor: torch.Tensor, purpose: str) -> None:
        key = _storage(tensor)
        if key in self.known:
            return
        self.known.add(key)
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self.live[purpose] += size
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)

        def gone() -> None:
            self.live[purpose] -= size
            self.known.discard(key)

        weakref.finalize(storage, gone)


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


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
