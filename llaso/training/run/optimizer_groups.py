"""AdamW's parameter groups when parts have rates of their own, parts that begin to learn later, and learning rates
that change on resume."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch import nn

from ..recipe.recipe import OptimizerChoice, PartOptimizerChoice
from .model_setup import part_of


def has_own_rates(choice: OptimizerChoice) -> bool:
    """Return whether a part has a learning rate or weight decay of its own."""
    return any(part != PartOptimizerChoice() for part in (choice.encoder, choice.projector, choice.llm))


def late_parts(choice: OptimizerChoice) -> list[str]:
    """Return the names of the parts that begin to learn after the others."""
    return [name for name in ("encoder", "projector", "llm") if getattr(choice, name).start > 0]


def parameter_groups(model: nn.Module, choice: OptimizerChoice, decayed: Collection[str]) -> list[dict[str, Any]]:
    """Group the parameters that learn by part, those with weight decay apart from those without.

    Args:
        model: a LLaSO model, its parts frozen already.
        choice: learning rates and weight decays.
        decayed: names of the parameters that decay; biases and norms do not.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in decayed), []).append(parameter)

    def group(part: str, decays: bool, parameters: list[nn.Parameter]) -> dict[str, Any]:
        own: PartOptimizerChoice = getattr(choice, part)
        rate = choice.learning_rate if own.learning_rate is None else own.learning_rate
        decay = choice.weight_decay if own.weight_decay is None else own.weight_decay
        return {"params": parameters, "lr": rate, "weight_decay": decay if decays else 0.0}

    return [group(part, decays, parameters) for (part, decays), parameters in groups.items()]


@contextmanager
def late_parts_frozen(model: nn.Module, choice: OptimizerChoice, progress: float) -> Iterator[None]:
    """Freeze the parts that do not learn yet, for the micro-batch inside.

    They get no gradient, so that AdamW leaves them as they are, and no graph of them is recorded. Outside they count
    as parts that learn: a checkpoint holds them from the first step on.

    Args:
        model: a LLaSO model.
        choice: says from when each part learns.
        progress: share of the run's steps that are done.
    """
    held = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and progress < getattr(choice, part_of(name)).start
    ]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def set_learning_rates(optimizer: torch.optim.Optimizer, scheduler: Any, rates: Sequence[float]) -> None:
    """Continue a loaded schedule with other learning rates, from its present position.

    Args:
        optimizer: each of its groups takes one rate.
        scheduler: transformers' `LambdaLR` with the new schedule, its position loaded.
        rates: at the top of the schedule.
    """
    if isinstance(scheduler, AcceleratedScheduler):
        scheduler = scheduler.scheduler
    scheduler.base_lrs = list(rates)
    scheduler._last_lr = [
        rate * share(scheduler.last_epoch) for rate, share in zip(rates, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate, now in zip(optimizer.param_groups, rates, scheduler._last_lr, strict=True):
        group["initial_lr"], group["lr"] = rate, now
