"""Half precision where the machine has instructions for it, fp32 elsewhere; decided from what the machine reports."""

from __future__ import annotations

import logging

import pytest
import torch
from support.tiny_families import family_llaso
from support.tiny_training import tiny_recipe

from eval_suite.backends import TransformersBackend
from llaso.training.recipe.recipe import load_recipe
from llaso_common import half_precision
from llaso_common.half_precision import computes_in_bf16
from modeling_llaso.loading import load


@pytest.fixture
def processor(request, monkeypatch):
    """A processor with the capabilities of the test's parameter, and no GPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param, raising=False)


NEW, OLD = {"avx2": True, "amx_bf16": True}, {"avx2": True, "avx512_bf16": False}
each_processor = pytest.mark.parametrize(("processor", "has"), [(NEW, True), (OLD, False)], indirect=["processor"])


@each_processor
def test_auto_is_what_the_machine_computes_in(processor, has):
    assert computes_in_bf16() is computes_in_bf16("cpu") is has
    compute = load_recipe("small_stage1").compute
    assert (compute.precision, compute.frozen_weights) == (("bf16", "bf16") if has else ("fp32", "fp32"))
    asked = load_recipe("small_stage1", ["compute.precision=fp32"]).compute
    assert (asked.precision, asked.frozen_weights) == ("fp32", "fp32")
    assert load_recipe("stage1_align").compute.precision == "bf16"  # made for GPUs, and weighed so by a dry run


@each_processor
def test_checkpoints_in_half_precision_are_opened_in_what_is_fast(processor, has, tmp_path):
    model, llaso_processor = family_llaso("llama3")
    for part in (model.bfloat16(), llaso_processor):
        part.save_pretrained(tmp_path)
    want = torch.bfloat16 if has else torch.float32
    assert load(str(tmp_path), "cpu")[0].dtype == want
    for dtype, of_weights in (("auto", want), ("bfloat16", torch.bfloat16)):
        backend = TransformersBackend(tmp_path, dtype=dtype, device="cpu")
        backend.load()
        assert backend.model.dtype == of_weights


@each_processor
def test_bf16_that_would_crawl_is_warned_of(processor, has, tmp_path, caplog):
    from llaso.training.run.train import train

    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError):
        train(tiny_recipe(tmp_path, "run"), {"compute.precision": "bf16", "model.checkpoint": str(tmp_path / "none")})
    assert ("compute.precision=auto" in caplog.text) is not has


def test_what_an_old_torch_does_not_tell_is_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not half_precision.computes_in_bf16("cpu")
