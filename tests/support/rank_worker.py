"""One process of a training run, as `llaso train` is: `python rank_worker.py RECIPE.yaml`.

Three environment variables change it. `TRACE=1`: what is compiled is traced and differentiated as for any compiler,
but run without one, which takes a minute less. `SHARD=1`, for configurations that shard: the CPU is declared an
accelerator, since accelerate allows FSDP on those only. `FREEZE=POINT:RANK:NUMBER,…`: the process of that rank stops
itself (SIGSTOP) the NUMBERth time it comes to a point, so that a test can act on it there. Points are `step`, when a
step is recorded but not yet taken; `save`, when a checkpoint's small files are written; `write`, when its weights are,
in the thread that writes them; `hear`, during an evaluation; `train`, when the last step is done and the model not yet
written.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from types import ModuleType

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

from llaso.cli import main
from llaso.training.run import checkpoints
from llaso.training.run.held_out import HeldOut
from llaso.training.run.history import History

POINTS = {
    "step": (History, "add"),
    "save": (Trainer, "_save_checkpoint"),
    "write": (checkpoints, "save_file"),
    "hear": (HeldOut, "_transcribe"),
    "train": (Trainer, "train"),
}


def after(kind: type | ModuleType, name: str, then) -> None:
    """Call `then` with a method's arguments, each time the method has returned."""
    method = getattr(kind, name)

    def called(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        then(self, *args)
        return result

    setattr(kind, name, called)


def as_accelerator(state: PartialState, *args) -> None:
    """Give this run the distributed type that accelerate has for GPUs."""
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def freeze_at(point: str, rank: str, number: str) -> None:
    """Stop this process at a point, if `FREEZE` names its rank and this point."""
    came = 0

    def freeze(self, *args) -> None:
        nonlocal came
        came += not (point == "step" and args[0]["kind"] != "step")
        if came == int(number):
            os.kill(os.getpid(), signal.SIGSTOP)

    if os.environ.get("RANK", "0") == rank:
        after(*POINTS[point], freeze)


if __name__ == "__main__":
    if "TRACE" in os.environ:
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    if "SHARD" in os.environ:
        after(PartialState, "__init__", as_accelerator)
    for place in filter(None, os.environ.get("FREEZE", "").split(",")):
        freeze_at(*place.split(":"))
    sys.exit(main(["train", *sys.argv[1:]]))
