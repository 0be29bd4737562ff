"""Recipes: what they may say, how mistakes are answered, and that the quickstart's differ in sizes and paths only."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modeling_llaso.training.config import RECIPES, load_recipe, valid_names

SIZES_AND_PATHS = {
    "model.encoder",
    "model.llm",
    "model.checkpoint",
    "model.audio_padding",
    "model.projector_stride",
    "model.projector_pooling",
    "data.path",
    "data.rows",
    "data.seconds_per_row",
    "batch.per_device",
    "batch.accumulation",
    "optimizer.epochs",
    "optimizer.learning_rate",  # goes with the width of the network
    "compute.precision",
    "compute.frozen_weights",
    "compute.gradient_checkpointing",
    "compute.encoder_cache_gb",
    "watch.evaluate_every",
    "watch.save_every",
    "out",
}
"""What a laptop's recipe may change: how large, how often, on which arithmetic, and where. Not what is done."""


def flat(tree: dict, prefix: str = "") -> dict:
    items: dict = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


@pytest.mark.parametrize(
    ("small", "full"), [("quickstart_stage1", "stage1_align"), ("quickstart_stage2", "stage2_instruct")]
)
def test_quickstart_differs_from_the_full_recipe_in_sizes_and_paths_only(small, full):
    little, large = flat(load_recipe(small).to_dict()), flat(load_recipe(full).to_dict())
    assert little.keys() == large.keys()
    changed = {name for name in large if little[name] != large[name]}
    assert changed and changed <= SIZES_AND_PATHS


def test_full_recipes_say_what_the_paper_says():
    align, instruct = load_recipe("stage1_align"), load_recipe("stage2_instruct")
    assert (align.train, instruct.train) == (("projector",), ("projector", "llm"))
    assert (align.optimizer.learning_rate, instruct.optimizer.learning_rate) == (1e-3, 3e-5)
    assert (align.optimizer.warmup_ratio, instruct.optimizer.warmup_ratio) == (0.0015, 0.01)
    assert (align.batch.per_device, align.batch.accumulation) == (2, 32)
    assert (instruct.batch.per_device, instruct.batch.accumulation) == (1, 32)
    assert (align.batch.group_by_length, instruct.batch.group_by_length) == (False, True)
    assert (align.compute.gradient_checkpointing, instruct.compute.gradient_checkpointing) == (False, True)
    for recipe in (align, instruct):
        assert recipe.optimizer.schedule == "cosine"
        assert (recipe.optimizer.epochs, recipe.optimizer.clip, recipe.optimizer.weight_decay) == (1, 1.0, 0.0)
        assert (recipe.data.max_length, recipe.compute.precision, recipe.compute.frozen_weights) == (
            2048,
            "bf16",
            "bf16",
        )
    assert (align.model.audio_padding, instruct.model.audio_padding) == (
        "full",
        None,
    )  # None: as the checkpoint has it


def test_stage_two_reads_as_a_diff_of_stage_one():
    own = yaml.safe_load((RECIPES / "stage2_instruct.yaml").read_text(encoding="utf-8"))
    assert own["base"] == "stage1_align.yaml"
    below = flat(load_recipe("stage1_align").to_dict())
    repeated = [name for name, value in flat(own).items() if name in below and below[name] == value]
    assert repeated == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.per_devise=4"], "the nearest is `batch.per_device`"),
        (["learning_rate=1e-4"], "the nearest is `optimizer.learning_rate`"),
        (["batch.per_device=two"], "`batch.per_device` is an integer, not 'two'"),
        (["batch.per_device=0"], "`batch.per_device` is 0, but must be at least 1"),
        (["train=[projektor]"], "perhaps projector?"),
        (["data.streaming=yes", "optimizer.epochs=2"], "set `optimizer.max_steps`"),
        (["compute.encoder_cache_gb=1", "train=[encoder]"], "output of a frozen encoder"),
        (["lora.rank=4"], "does not name llm"),
        (["compute.precision=fp32"], "set compute.frozen_weights=fp32 as well"),
        (["batch"], "write it as key=value"),
    ],
)
def test_mistakes_are_answered_with_the_remedy(overrides, message):
    with pytest.raises(ValueError) as error:
        load_recipe("stage1_align", overrides)
    assert message in str(error.value)


def test_a_mistake_in_a_file_names_the_file_and_the_nearest_key(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: stage1_align.yaml\noptimiser:\n  epochs: 2\n")
    with pytest.raises(ValueError, match=r"mine.yaml: no setting `optimiser`; the nearest is `optimizer"):
        load_recipe(path)
    path.write_text("base: mine.yaml\n")
    with pytest.raises(ValueError, match="leads back to itself"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match="quickstart_stage1"):
        load_recipe("no_such_recipe")


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert load_recipe("stage1_align", ["optimizer.learning_rate=1e-3"]).optimizer.learning_rate == 1e-3


def test_a_recipe_survives_its_own_yaml():
    recipe = load_recipe("stage2_instruct", ["data.tasks=[ASR, PR]", "lora.rank=8"])
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert set(flat(recipe.to_dict())) == set(valid_names())
