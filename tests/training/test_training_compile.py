"""Compiled layers learn what they learn as they are, and a run with them resumes and exports like any other."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_training import curve, interrupted_after, row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import load_recipe
from llaso.training.run.compilation import should_compile
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer

STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    save_backbones(folder)
    rows = [row(i) for i in range(24)] + [row(i, task="IP", clips=2) for i in range(8)]
    save_corpus(folder / "corpus", {"train": rows, "validation": [row(i, seed=1) for i in range(2)]})
    return folder


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The gradients of every step, by name."""
    found: list[dict[str, torch.Tensor]] = []
    record_step = LlasoTrainer._record_step

    def watched(self, grad_norm):
        named = self.unwrapped.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        record_step(self, grad_norm)

    monkeypatch.setattr(LlasoTrainer, "_record_step", watched)
    return found


def assert_same_learning(root: Path, tmp_path: Path, gradients: list[Any], settings: dict[str, Any]) -> None:
    curves = []
    for compiled in (False, True):
        out = tmp_path / f"compiled-{compiled}"
        recipe = tiny_recipe(root, "unused", train=["projector", "llm"], optimizer__max_steps=STEPS) | {
            "out": str(out)
        }
        train(recipe, settings | {"compute.compile": compiled})
        curves.append(curve(out))
    for one, other in zip(*curves, strict=True):
        assert other[1] == pytest.approx(one[1], rel=1e-5) and other[3] == one[3]
    plain, compiled = gradients[:STEPS], gradients[STEPS:]
    assert len(compiled) == STEPS
    for before, after in zip(plain, compiled, strict=True):
        assert before.keys() == after.keys()
        for name, gradient in before.items():
            torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_compiled_layers_learn_the_same_and_a_killed_run_goes_on(root, tmp_path, gradients):
    assert_same_learning(root, tmp_path, gradients, {})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # a layer of the encoder, and one of the LLM
    out = tmp_path / "killed"
    recipe = tiny_recipe(root, "unused", train=["projector", "llm"], optimizer__max_steps=STEPS) | {"out": str(out)}
    with interrupted_after(STEPS):
        train(recipe, {"compute.compile": True})
    lines: list[str] = []
    train(recipe, {"compute.compile": True}, lines.append)
    assert any("going on from step 2" in line for line in lines)
    whole = tmp_path / "compiled-False"
    for one, other in zip(curve(whole), curve(out), strict=True):
        assert other[1] == pytest.approx(one[1], rel=1e-5) and other[3] == one[3]
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


SETTINGS: dict[str, dict[str, Any]] = {
    "layers computed again": {"compute.gradient_checkpointing": True, "train": ["encoder", "projector", "llm"]},
    "adapters, loss in chunks": {"lora.rank": 2, "compute.loss_chunk": 5},
    "a teacher, full windows": {
        "optimizer.distill_weight": 0.5,
        "model.audio_padding": "full",
        "train": ["projector"],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled_layers_go_with_other_settings(root, tmp_path, monkeypatch, gradients, name):
    """Traced and differentiated as for any compiler, but run without one, which takes seconds less."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert_same_learning(root, tmp_path, gradients, SETTINGS[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch.packing": True}, "does not go with `batch.packing`.*set batch.packing=false"),
        (
            {"compute.gradient_checkpointing": "selective"},
            "does not go with `compute.gradient_checkpointing` selective",
        ),
    ],
)
def test_what_compiled_layers_do_not_go_with_is_refused_by_name(root, settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(tiny_recipe(root, "unused"), settings | {"compute.compile": True})


def test_sharded_weights_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(LlasoTrainer, "shards", True)
    recipe = tiny_recipe(root, "unused") | {"out": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="compute.compile .* launch without FSDP or DeepSpeed"):
        train(recipe, {"compute.compile": True})


@pytest.mark.parametrize("said", [True, "auto"])
def test_without_a_compiler_it_is_refused_or_left_out(root, monkeypatch, said):
    recipe = load_recipe(tiny_recipe(root, "unused"), {"compute.compile": said})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/" + name if name == "g++" else None)
    assert should_compile(recipe, "cpu", sharded=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if said is True:
        with pytest.raises(ValueError, match=r"install g\+\+ or clang\+\+, or set compute.compile=false"):
            should_compile(recipe, "cpu", sharded=False)
    else:
        assert not should_compile(recipe, "cpu", sharded=False) and not should_compile(recipe, "cpu", sharded=True)


def test_auto_gives_way_to_other_settings(root, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/" + name)
    for other in ({"batch.packing": True}, {"compute.gradient_checkpointing": "selective"}):
        recipe = load_recipe(tiny_recipe(root, "unused"), other | {"compute.compile": "auto"})
        assert not should_compile(recipe, "cpu", sharded=False)
