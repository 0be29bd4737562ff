"""One of two processes that train together over gloo: `python rank_worker.py RECIPE.yaml MODE`, MODE ddp or fsdp2."""

from __future__ import annotations

import os
import sys

import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from modeling_llaso.training.config import RECIPES
from modeling_llaso.training.train import train


def use_fsdp2_on_cpu() -> None:
    """Set what `accelerate launch --config_file fsdp2.yaml` sets, and open FSDP, kept for accelerators, to CPUs."""
    settings = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in settings.items():
        name = name.upper().replace("FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP")
        os.environ[name] = str(value).lower() if isinstance(value, bool) else str(value)
    initialize = PartialState.__init__

    def as_accelerators(self, *args, **kwargs) -> None:
        initialize(self, *args, **kwargs)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_accelerators  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[2] == "fsdp2":
        use_fsdp2_on_cpu()
    train(sys.argv[1], report=lambda line: print(line, flush=True))
