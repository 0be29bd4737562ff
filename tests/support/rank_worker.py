"""One process of a training run, as `llaso train` is: `python rank_worker.py RECIPE.yaml`.

The environment may ask for two things. `SHARD=1`, where a configuration shards: this process says that the CPU is an
accelerator, since accelerate keeps FSDP for those. `FREEZE=POINT:RANK:NUMBER,…`: that process stops itself (SIGSTOP)
the NUMBERth time it comes to a point, so that a test can do something to it just there: `step`, where a step is
recorded but not yet taken; `save`, where a checkpoint's files are written but it does not count yet; `hear`, in the
midst of an evaluation; `train`, where the last step is done and the model not yet written.
"""

from __future__ import annotations

import os
import signal
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

from llaso.cli import main
from llaso.training.run.held_out import HeldOut
from llaso.training.run.history import History

POINTS = {
    "step": (History, "add"),
    "save": (Trainer, "_save_checkpoint"),
    "hear": (HeldOut, "_transcribe"),
    "train": (Trainer, "train"),
}


def after(kind: type, name: str, then) -> None:
    """Call `then` with what a method was called with, each time it has returned."""
    method = getattr(kind, name)

    def called(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        then(self, *args)
        return result

    setattr(kind, name, called)


def as_accelerator(state: PartialState, *args) -> None:
    """Name this kind of run as it would be named on GPUs."""
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def freeze_at(point: str, rank: str, number: str) -> None:
    """Stop this process at a point, if it is the one that is meant."""
    came = 0

    def freeze(self, *args) -> None:
        nonlocal came
        came += not (point == "step" and args[0]["kind"] != "step")
        if came == int(number):
            os.kill(os.getpid(), signal.SIGSTOP)

    if os.environ.get("RANK", "0") == rank:
        after(*POINTS[point], freeze)


if __name__ == "__main__":
    if "SHARD" in os.environ:
        after(PartialState, "__init__", as_accelerator)
    for place in filter(None, os.environ.get("FREEZE", "").split(",")):
        freeze_at(*place.split(":"))
    sys.exit(main(["train", *sys.argv[1:]]))
