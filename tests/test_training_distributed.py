"""Two gloo processes, data-parallel or sharded with FSDP2, train as one does at the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe

from modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.training.config import RECIPES
from modeling_llaso.training.train import train

WORKER = Path(__file__).with_name("rank_worker.py")
LOSS_TOLERANCE = 2e-5
"""Relative, a step: sums of float32 in another order."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_backbones(folder)
    save_corpus(
        folder / "corpus",
        {
            "train": [row(i) for i in range(24)] + [row(i, task="IP", clips=2) for i in range(8)],
            "validation": [row(i, seed=1) for i in range(3)],
        },
    )
    return folder


def recipe_of(root: Path, out: str, accumulation: int) -> dict[str, Any]:
    return tiny_recipe(root, out, batch__accumulation=accumulation, train=["projector", "llm"])


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    return Path(train(recipe_of(root, "alone", 2)).out)


def train_on_two(recipe: dict[str, Any], mode: str, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = os.environ | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(file), mode],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(output[-4000:] for output in outputs)
    return Path(recipe["out"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_follow_the_loss_curve_of_one(root, alone, tmp_path, mode):
    out = train_on_two(recipe_of(root, mode, 1), mode, tmp_path)
    one, two = curve(alone), curve(out)
    assert len(one) == len(two) == 6
    for (step, loss, norm, _), (_, other_loss, other_norm, _) in zip(one, two, strict=True):
        assert other_loss == pytest.approx(loss, rel=LOSS_TOLERANCE), f"step {step}"
        assert other_norm == pytest.approx(norm, rel=1e-3), f"step {step}"
    a, b = (load_file(folder / "model.safetensors") for folder in (alone, out))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=2e-4, msg=name)
    model, loading = LlasoForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("name", ["cpu", "fsdp2", "multi_node", "deepspeed_zero2", "deepspeed_zero3"])
def test_launch_configurations_are_ones_that_accelerate_reads(name):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert config.num_processes % config.num_machines == 0
    kind = {"cpu": "MULTI_CPU", "fsdp2": "FSDP", "multi_node": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type == kind
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # checkpoints load as ordinary ones
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
