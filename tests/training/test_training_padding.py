"""Switching a checkpoint from one audio padding to the other: possible, and never silent."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from support.tiny_llaso import tiny_llaso
from support.tiny_training import tiny_recipe

from llaso.training.recipe.recipe import load_recipe
from llaso.training.run.model_setup import open_model
from modeling_llaso.loading import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model made with `trim`."""
    folder = tmp_path_factory.mktemp("padding") / "trim"
    model, processor = tiny_llaso("trim")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("asked", "warned"), [("full", True), ("trim", False), (None, False)])
def test_a_recipe_that_switches_the_padding_of_a_checkpoint_is_told(checkpoint, tmp_path, caplog, asked, warned):
    recipe = load_recipe(
        tiny_recipe(tmp_path, "out") | {"model": {"checkpoint": str(checkpoint), "audio_padding": asked}}
    )
    with caplog.at_level(logging.WARNING, logger="llaso"):
        model, processor = open_model(recipe)
    assert model.config.audio_padding == processor.audio_padding == (asked or "trim")
    said = [record.getMessage() for record in caplog.records if "audio_padding" in record.getMessage()]
    assert len(said) == warned
    assert not warned or f"is full, but {checkpoint} was trained with trim" in said[0]


def test_a_processor_that_pads_otherwise_than_its_model_is_told(checkpoint, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="modeling_llaso"):
        load(str(checkpoint), "cpu")
    assert not caplog.records
    switched = tmp_path / "switched"
    switched.mkdir()
    for file in checkpoint.iterdir():
        (switched / file.name).write_bytes(file.read_bytes())
    settings = switched / "processor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"audio_padding": "full"}))
    with caplog.at_level(logging.WARNING, logger="modeling_llaso"):
        load(str(switched), "cpu")
    (record,) = caplog.records
    assert f"{switched}: its processor pads audio as full, and the model was trained with trim" in record.getMessage()
