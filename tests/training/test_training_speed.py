"""What the history says of a step's arithmetic is what PyTorch counts in it, and its share of the chip's peak."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM, Trainer

from llaso.training.recipe.recipe import load_recipe
from llaso.training.run import chips, step_timer, trainer
from llaso.training.run.callbacks import speed_in_words
from llaso.training.run.chips import peak_of
from llaso.training.run.step_flops import StepFlops
from llaso.training.run.step_timer import StepTimer, stepping
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer
from modeling_llaso.conversion import new_model

STEPS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    save_backbones(folder, encoder_layers=3)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(12)] + [row(i, task="IP") for i in range(8)]})
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(6)]})
    return folder


def steps_of(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


CHANGES: dict[str, dict[str, Any]] = {
    "stage 1": {},
    "stage 1, full windows, stride 2": {"model__audio_padding": "full", "model__projector_stride": 2},
    "stage 2": {"train": ["projector", "llm"]},
    "stage 2, all logits": {"train": ["projector", "llm"], "compute__answer_only_logits": False},
    "encoder, too": {"train": ["encoder", "projector", "llm"]},
    "encoder alone": {"train": ["encoder"]},
    "the encoder's last layers": {"train": ["encoder", "projector"], "encoder_last_layers": 2},
    "encoder's adapters": {"train": ["encoder", "projector"], "encoder_lora": {"rank": 2}},
    "adapters behind the attention": {"train": ["encoder"], "encoder_lora": {"rank": 2, "targets": ["fc2"]}},
    "encoder from half the run on": {"train": ["encoder", "projector"], "optimizer__encoder": {"start": 0.5}},
    "lora": {"train": ["projector", "llm"], "lora": {"rank": 2}},
    "a teacher": {"train": ["projector", "llm"], "optimizer__distill_weight": 0.5},
    "a frozen teacher, text rows": {"optimizer__distill_weight": 0.5, "data__text_share": 0.5, "text": True},
    "ctc": {"optimizer__ctc_weight": 1.0, "data__tasks": ["ASR"]},
    "ctc and llm": {"optimizer__ctc_weight": 0.5, "train": ["projector", "llm"]},
    "packed": {"train": ["encoder", "projector", "llm"], "batch__packing": True},
    "kept encoder output": {"compute__encoder_cache_gb": 0.01},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_steps_arithmetic_is_what_torch_counts(root, tmp_path, monkeypatch, name):
    """One row at a time, so that there is no padding; eager attention, whose products PyTorch counts on a CPU."""
    counted: list[int] = []
    training_step = LlasoTrainer.training_step

    def watched(self, *args, **kwargs):
        with FlopCounterMode(display=False) as counter:
            loss = training_step(self, *args, **kwargs)
        counted.append(counter.get_total_flops())
        return loss

    monkeypatch.setattr(LlasoTrainer, "training_step", watched)
    changes = dict(CHANGES[name])
    if changes.pop("text", False):
        changes["data__text_path"] = str(root / "text")
    recipe = tiny_recipe(root, "unused", compute__attention="eager", optimizer__max_steps=STEPS, **changes)
    recipe["batch"] |= {"per_device": 1, "accumulation": 4}
    recipe["out"] = str(tmp_path / "run")
    train(recipe)
    records = steps_of(tmp_path / "run")
    assert len(records) == STEPS and len(counted) == 4 * STEPS
    for number, record in enumerate(records):
        assert record["flop"] == pytest.approx(sum(counted[4 * number : 4 * number + 4]), rel=0.02)


def test_padding_packing_and_checkpointing_leave_the_arithmetic_as_it_is(root, tmp_path):
    found = {}
    for name, changes in {
        "padded": {},
        "packed": {"batch.packing": True},
        "checkpointed": {"compute.gradient_checkpointing": True, "compute.loss_chunk": 5},
    }.items():
        recipe = tiny_recipe(root, "unused", train=["projector", "llm"], optimizer__max_steps=STEPS)
        recipe["out"] = str(tmp_path / name)
        train(recipe, changes)
        found[name] = [record["flop"] for record in steps_of(tmp_path / name)]
    assert found["padded"] == found["packed"] == found["checkpointed"]


def test_the_share_of_the_peak_is_known_with_the_chip(root, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "chip_name", lambda device: "NVIDIA H100 80GB HBM3")
    lines: list[str] = []
    changes = {"compute.precision": "bf16", "watch.show_seconds": True, "optimizer.max_steps": STEPS}
    train(tiny_recipe(root, "unused") | {"out": str(tmp_path / "known")}, changes, lines.append)
    for record in steps_of(tmp_path / "known"):
        assert record["flop_per_second"] == pytest.approx(record["flop"] / stepping(record["seconds"]))
        assert record["share_of_peak"] == pytest.approx(record["flop_per_second"] / 989e12)
    shown = [line for line in lines if "TFLOP/s" in line]
    assert len(shown) == STEPS and all("% of what H100 can do" in line and "reading" in line for line in shown)

    train(tiny_recipe(root, "unused") | {"out": str(tmp_path / "fp32")}, changes | {"compute.precision": "fp32"})
    assert all("share_of_peak" not in record for record in steps_of(tmp_path / "fp32"))  # the peak is bf16's

    monkeypatch.undo()
    train(tiny_recipe(root, "unused") | {"out": str(tmp_path / "cpu")}, changes, lines.append)
    records = steps_of(tmp_path / "cpu")
    assert all(record["flop_per_second"] > 0 and "share_of_peak" not in record for record in records)
    assert "TFLOP/s" in lines[-2] and "can do" not in lines[-2]


@pytest.mark.parametrize(("reading", "arithmetic"), [(1.0, 1.0), (0.1, 1.0)])
def test_a_line_says_once_when_the_gpu_waits_for_batches_and_what_to_set(
    root, tmp_path, monkeypatch, reading, arithmetic
):
    """A GPU and its clock are pretended: time passes while batches are read, and while losses are computed."""
    now = 0.0

    class OnGpu(StepTimer):
        def __init__(self, cuda: bool) -> None:
            super().__init__(True)

        def mark(self) -> float:
            return now

    def takes(kind: type, name: str, seconds: float) -> None:
        method = getattr(kind, name)

        def timed(*args, **kwargs):
            nonlocal now
            now += seconds
            return method(*args, **kwargs)

        monkeypatch.setattr(kind, name, timed)

    monkeypatch.setattr(step_timer, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(trainer, "StepTimer", OnGpu)
    takes(Trainer, "get_batch_samples", reading)
    takes(LlasoTrainer, "compute_loss", arithmetic)  # twice a step
    lines: list[str] = []
    recipe = tiny_recipe(root, "unused", optimizer__max_steps=STEPS) | {"out": str(tmp_path / "run")}
    train(recipe, report=lines.append)
    told = [line for line in lines if "the GPU waits for batches" in line]
    assert told == (["the GPU waits for batches 33% of the time; raise compute.workers"] if reading == 1 else [])


def test_the_rate_is_of_all_steps_together_without_saving_and_evaluating():
    records = [
        {"flop": 3e12, "seconds": {"total": 3.0, "saving": 1.0, "evaluating": 1.0}},
        {"flop": 1e12, "seconds": {"total": 3.0}},
        {"seconds": {"total": 9.0}},
    ]
    assert speed_in_words(records) == "1 TFLOP/s"
    assert speed_in_words(records, "2 x A100", 4e12) == "1 TFLOP/s, 25.0% of what 2 x A100 can do"
    assert speed_in_words(records[2:]) == "arithmetic not known"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", ("H100", 989e12)),
        ("NVIDIA H100 PCIe", ("H100 PCIe", 756e12)),
        ("NVIDIA GH200 480GB", ("GH200", 989e12)),
        ("NVIDIA A100-SXM4-40GB", ("A100", 312e12)),
        ("NVIDIA L4", ("L4", 121e12)),
        ("NVIDIA L40S", ("L40S", 362e12)),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", ("RTX 4090", 165e12)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("CPU", None),
    ],
)
def test_chips_are_known_by_name(name, known):
    assert peak_of(name) == known


def test_no_figure_is_given_for_an_llm_with_experts(root, tmp_path):
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    for file in (root / "llm").glob("*token*"):
        (tmp_path / "experts" / file.name).write_bytes(file.read_bytes())
    model, _ = new_model(str(root / "encoder"), str(tmp_path / "experts"), dtype="float32", seed=0)
    assert not StepFlops(model, load_recipe(tiny_recipe(root, "unused"))).known
    assert chips.chip_name(torch.device("cpu")) == "CPU"
