"""Counts FLOPs, and the bytes of tensors that are alive, operator by operator, by a dispatch mode of PyTorch.

It works on real tensors, in a training step, and on fake ones, which have shapes and types only.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

COPIES = "weights copied to bf16 for the arithmetic"
"""The purpose for which copies of weights in another type are counted."""


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


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
