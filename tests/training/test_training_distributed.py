"""Several processes train as one does at the same global batch, launched on gloo as shipped configurations say."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from support.paths import ROOT
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import RECIPES
from llaso.training.rows.encoder_cache import GIGABYTE
from llaso.training.run.checkpoints import complete_checkpoints
from llaso.training.run.history import read_history
from llaso.training.run.train import train
from modeling_llaso import LlasoForConditionalGeneration

CONFIGURATIONS = RECIPES / "accelerate"
LLASO = ("-m", "llaso.cli", "train")
WORKER = str(ROOT / "tests/support/rank_worker.py")
STEPS = 10
LOSE_AT = 5  # checkpoints are written every 2 steps
CACHE_BYTES = 30_000
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
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(6)]})
    return folder


def recipe_of(root: Path, out: str, accumulation: int, **changes: Any) -> dict[str, Any]:
    """All that could tell processes apart: text alone, a teacher, and a cache too small for every clip."""
    return tiny_recipe(
        root,
        out,
        train=["projector", "llm"],
        data__text_path=str(root / "text"),
        data__text_share=0.3,
        batch__accumulation=accumulation,
        optimizer__max_steps=STEPS,
        optimizer__distill_weight=0.3,
        compute__encoder_cache_gb=CACHE_BYTES / GIGABYTE,
        **changes,
    )


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    out = Path(train(recipe_of(root, "alone", 2)).out)
    (vectors,) = root.glob("encoder-cache/*/vectors.f16")
    kept = len((vectors.parent / "index.jsonl").read_text().splitlines())
    assert vectors.stat().st_size <= CACHE_BYTES and 0 < kept < 43  # not all clips fit
    return out


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(configuration: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`accelerate launch`, as the head of each configuration shows it."""
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
        + [str(CONFIGURATIONS / f"{configuration}.yaml"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def frozen_worker(launched: list[subprocess.Popen[str]]) -> psutil.Process:
    """Wait for the process that `rank_worker.py` was told to freeze, and return its id."""
    while True:
        for launcher in launched:
            assert launcher.poll() is None, launcher.communicate()[0][-4000:]
            for worker in psutil.Process(launcher.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if worker.status() == psutil.STATUS_STOPPED:
                        return worker
        time.sleep(0.01)


def launch_two_nodes(recipe: Path, **environment: str) -> list[subprocess.Popen[str]]:
    """Two machines of one process each, both of them this one."""
    common = ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", free_port())
    common += ("--mixed_precision", "no")
    return [
        launch("multi_node", *common, "--machine_rank", rank, WORKER, str(recipe), SHARD="1", **environment)
        for rank in ("0", "1")
    ]


def assert_same_training(one: Path, other: Path) -> None:
    first, second = curve(one), curve(other)
    assert len(first) == len(second) == STEPS
    assert [rows for *_, rows in first] == [rows for *_, rows in second]  # the same rows meet in every micro-batch
    for (step, loss, norm, _), (_, other_loss, other_norm, _) in zip(first, second, strict=True):
        assert other_loss == pytest.approx(loss, rel=LOSS_TOLERANCE), f"step {step}"
        assert other_norm == pytest.approx(norm, rel=1e-3), f"step {step}"
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=2e-4, msg=name)
    model, loading = LlasoForConditionalGeneration.from_pretrained(other, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["plain", "batch__packing", "compute__compile"])
def test_two_processes_follow_the_loss_curve_of_one(root, alone, tmp_path, setting):
    recipe = recipe_of(root, f"ddp-{setting}", 1, **({} if setting == "plain" else {setting: True}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    traced = setting == "compute__compile"
    program, environment = ([WORKER], {"TRACE": "1"}) if traced else (LLASO, {})
    process = launch("cpu", "--main_process_port", free_port(), *program, str(tmp_path / "recipe.yaml"), **environment)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    assert "of 4 x 1 x 2 rows" in output
    assert_same_training(alone, Path(recipe["out"]))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_two_processes_align_as_one_does(root, weight):
    """The wrapper has to see a forward pass even if the LLM has none, and both processes hide what one does."""
    changes = {"optimizer__ctc_weight": weight, "optimizer__max_steps": STEPS, "data__tasks": ["ASR"]}
    changes["spec_augment"] = {"time_masks_per_second": 2.0, "mel_masks": 1}
    one = train(tiny_recipe(root, f"aligned-{weight}", batch__accumulation=2, **changes))
    recipe = tiny_recipe(root, f"aligned-{weight}-by-two", batch__accumulation=1, **changes)
    file = Path(recipe["out"] + ".yaml")
    file.write_text(yaml.safe_dump(recipe))
    process = launch("cpu", "--main_process_port", free_port(), *LLASO, str(file))
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    assert_same_training(Path(one.out), Path(recipe["out"]))


def launch_two(recipe: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Two processes on this machine."""
    file = Path(recipe["out"] + ".yaml")
    file.write_text(yaml.safe_dump(recipe))
    return launch("cpu", "--main_process_port", free_port(), WORKER, str(file), **environment)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "second", "everyone"])
def test_a_signal_to_any_process_makes_all_save_the_same_step_and_stop(root, who):
    recipe = recipe_of(root, f"signal-{who}", 1, compute__workers=1)
    process = launch_two(recipe, FREEZE=f"step:1:{LOSE_AT}")
    frozen = frozen_worker([process])
    if who == "launcher":
        process.send_signal(signal.SIGINT)
    elif who == "second":
        frozen.send_signal(signal.SIGTERM)
    else:  # as a cluster does; the launcher then sends its own
        for one in psutil.Process(process.pid).children(recursive=True):
            one.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
    number = signal.SIGINT if who == "launcher" else signal.SIGTERM
    while not waits_for(frozen, number):
        time.sleep(0.01)
    frozen.send_signal(signal.SIGCONT)
    output = process.communicate()[0]
    assert process.returncode != 0
    step = LOSE_AT + 1  # at the latest: the signals came while all but the taking of step 5 was done
    assert output.count(f"stopped after step {step}, which is saved; the same command goes on from there") == 1, output
    assert complete_checkpoints(Path(recipe["out"]))[-1][0] == step


def waits_for(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a signal has been sent to a process that stands still."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = int(status.split("ShdPnd:")[1].split()[0], 16)
    return bool(pending >> (number - 1) & 1)


@pytest.mark.slow
def test_a_run_of_two_processes_whose_second_is_killed_is_finished_by_one(root, alone):
    recipe = recipe_of(root, "fewer", 1)
    out = Path(recipe["out"])
    process = launch_two(recipe, FREEZE=f"step:1:{LOSE_AT}")
    frozen_worker([process]).kill()
    output = process.communicate()[0]
    assert "a process that trains along is gone" in output and "Run the same command again" in output
    assert complete_checkpoints(out)[-1][0] == LOSE_AT - 1
    with pytest.raises(ValueError, match="2 micro-batches, but .* is 1 x 1 now; set batch.accumulation=2"):
        train(recipe)
    lines: list[str] = []
    train(recipe, ["batch.accumulation=2"], lines.append)
    assert any(f"going on from step {LOSE_AT - 1}" in line for line in lines)
    assert_same_training(alone, out)


@pytest.mark.slow
def test_when_a_loss_is_no_number_the_rows_of_all_processes_are_named_once(root):
    recipe = recipe_of(root, "diverged", 1, batch__per_device=3, watch__save_every=1)
    recipe["optimizer"] |= {"learning_rate": 1e38, "warmup_ratio": 0.0}
    output = (process := launch_two(recipe)).communicate()[0]
    assert process.returncode != 0 and output.count("training diverged: step 2: the loss is nan") == 1, output
    named = output.split("worst first: ")[1].split(".")[0].split(", ")
    assert len(named) == 2 * 3 and all(name.split("-")[0] in ("asr", "ip", "aqa") for name in named)
    out = Path(recipe["out"])
    assert [record["step"] for record in read_history(out / "history.jsonl") if record["kind"] == "step"] == [1]
    assert complete_checkpoints(out)[-1][0] == 1 and (out / "loss.png").exists()


@pytest.mark.slow
def test_two_sharded_nodes_lose_one_resume_and_follow_the_loss_curve_of_one_process(root, alone, tmp_path):
    recipe = recipe_of(root, "nodes", 1)
    out, file = Path(recipe["out"]), tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    nodes = launch_two_nodes(file, FREEZE=f"step:1:{LOSE_AT}")
    frozen_worker(nodes).kill()
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert all(node.returncode for node in nodes)
    assert "a process that trains along is gone" in outputs[0] and "Run the same command again" in outputs[0]
    kept = complete_checkpoints(out)
    assert kept[-1][0] == LOSE_AT - 1 and not (out / "training.json").exists()

    nodes = launch_two_nodes(file)
    outputs = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(output[-4000:] for output in outputs)
    assert f"going on from step {kept[-1][0]}" in outputs[0]
    assert_same_training(alone, out)


@pytest.mark.slow
def test_sharded_processes_that_pack_rows_follow_one_that_pads_them(root, alone):
    recipe = recipe_of(root, "packed-shards", 1, batch__packing=True)
    file = Path(recipe["out"] + ".yaml")
    file.write_text(yaml.safe_dump(recipe))
    where = ("--num_processes", "2", "--main_process_port", free_port(), "--mixed_precision", "no", WORKER)
    process = launch("fsdp2", *where, str(file), SHARD="1")
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    assert_same_training(alone, Path(recipe["out"]))


@pytest.mark.slow
def test_sharded_checkpoints_and_models_keep_the_types_of_their_parts(root, tmp_path):
    recipe = tiny_recipe(
        root,
        "types",
        train=["projector", "llm"],
        lora={"rank": 2, "targets": ["q_proj"]},
        optimizer__max_steps=4,
        watch__save_every=1,
        watch__keep=9,
        compute={"precision": "bf16", "frozen_weights": "bf16"},
    )
    out = Path(recipe["out"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    where = ("--num_processes", "2", "--main_process_port", free_port(), WORKER)
    process = launch("fsdp2", *where, str(tmp_path / "recipe.yaml"), SHARD="1", FREEZE="step:0:3")
    worker = frozen_worker([process])
    os.link(complete_checkpoints(out)[0][1] / "model.safetensors", tmp_path / "checkpoint.safetensors")
    worker.send_signal(signal.SIGCONT)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    checkpoint, model = load_file(tmp_path / "checkpoint.safetensors"), load_file(out / "model.safetensors")
    for name, tensor in checkpoint.items():
        learned = "lora_" in name or "projector" in name
        assert tensor.dtype == (torch.float32 if learned else torch.bfloat16), name
    for name, tensor in model.items():
        learned = "language_model" in name and "q_proj" in name or "projector" in name
        assert tensor.dtype == (torch.float32 if learned else torch.bfloat16), name
    _, loading = LlasoForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_follows_the_loss_curve_of_one_process(root, alone, tmp_path, stage):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
    recipe = recipe_of(root, f"zero{stage}", 1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    where = ("--num_processes", "2", "--main_process_port", free_port(), "--mixed_precision", "no")
    process = launch(f"deepspeed_zero{stage}", *where, *LLASO, str(tmp_path / "recipe.yaml"))
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    assert_same_training(alone, Path(recipe["out"]))


@pytest.mark.parametrize("name", ["cpu", "fsdp2", "multi_node", "deepspeed_zero2", "deepspeed_zero3"])
def test_launch_configurations_are_ones_that_accelerate_reads(name):
    config = load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))
    assert config.num_processes % config.num_machines == 0
    kind = {"cpu": "MULTI_GPU", "fsdp2": "FSDP", "multi_node": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type == kind
    if kind == "FSDP":
        assert config.fsdp_config == load_config_from_file(str(CONFIGURATIONS / "fsdp2.yaml")).fsdp_config
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # checkpoints load as ordinary ones
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
