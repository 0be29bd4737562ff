"""Recipes: what they may say, how mistakes are answered, and that the quickstart's differ in sizes and paths only."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from llaso.training.recipe.recipe import RECIPES, Recipe, load_recipe
from llaso.training.recipe.yaml_loader import names_and_ranges

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
    "compute.workers",
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


def test_the_small_recipes_align_without_the_llm_and_then_adapt_it():
    align, instruct = load_recipe("small_stage1"), load_recipe("small_stage2")
    assert align.optimizer.ctc_weight == 1 and align.train == ("projector", "encoder")
    assert align.optimizer.ctc_merges and instruct.optimizer.ctc_merges == align.optimizer.ctc_merges  # one alignment
    assert align.model.projector_norm and align.optimizer.encoder.start > 0  # the projector learns alone at first
    assert 0 < instruct.optimizer.ctc_weight < 1 and instruct.train == ("encoder", "projector", "llm")
    assert instruct.lora.rank > 0
    assert instruct.model.checkpoint == align.out
    assert instruct.optimizer.projector.learning_rate < align.optimizer.learning_rate  # what is aligned moves little
    assert instruct.optimizer.encoder.learning_rate < align.optimizer.encoder.learning_rate


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


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("stage2_instruct", "stage1_align"),
        ("quickstart_stage1", "stage1_align"),
        ("quickstart_stage2", "stage2_instruct"),
    ],
)
def test_a_recipe_reads_as_a_diff_of_its_base(name, base):
    own = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert own.pop("base") == f"{base}.yaml"
    below = flat(load_recipe(base).to_dict())
    assert [setting for setting, value in flat(own).items() if below[setting] == value] == []


def test_the_first_recipe_names_what_the_others_change():
    said = flat(yaml.safe_load((RECIPES / "stage1_align.yaml").read_text(encoding="utf-8")))
    changed = flat(yaml.safe_load((RECIPES / "stage2_instruct.yaml").read_text(encoding="utf-8")))
    assert set(changed) - {"base"} <= set(said)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.per_devise=4"], "the nearest is `batch.per_device`"),
        (["learning_rate=1e-4"], "the nearest is `optimizer.learning_rate`"),
        (["batch.per_device=two"], "`batch.per_device` is an integer, not 'two'"),
        (["batch.per_device=0"], "`batch.per_device` is 0, but must be at least 1"),
        (["train=[projektor]"], "perhaps projector?"),
        (["data.streaming=yes"], "`data.streaming` is no setting any more: every corpus is read while training"),
        (["compute.encoder_cache_gb=1", "train=[encoder]"], "output of a frozen encoder"),
        (["lora.rank=4"], "does not name llm"),
        (["compute.precision=fp32"], "set compute.frozen_weights=fp32 as well"),
        (["batch"], "write it as key=value"),
        (["batch.per_device=[4"], "`[4` is no YAML value"),
        (["batch.per_device=2.5"], "`batch.per_device` is an integer, not 2.5"),
        (["batch.per_device=.inf"], "`batch.per_device` is an integer, not inf"),
        (["batch.per_device=true"], "`batch.per_device` is an integer, not True"),
        (["optimizer.learning_rate=.nan"], "`optimizer.learning_rate` is nan, but must be above 0"),
        (["optimizer.learning_rate=fast"], "`optimizer.learning_rate` is a number, not 'fast'"),
        (["optimizer.max_steps=-1"], "`optimizer.max_steps` is -1, but must be at least 0"),
        (["optimizer.warmup_ratio=1.5"], "`optimizer.warmup_ratio` is 1.5, but must be at least 0 and below 1"),
        (["optimizer.schedule=cosin"], "perhaps cosine?"),
        (["watch.max_loss_jump=1"], "`watch.max_loss_jump` is 1.0, but must be above 1"),
        (["compute.gradient_checkpointing=perhaps"], "is true or false, not 'perhaps'"),
        (["compute.attention=flash"], "one of sdpa, eager"),
        (["data.path=3"], "`data.path` is text, not 3"),
        (["data.tasks={ASR: 1}"], "`data.tasks` is a list, not {'ASR': 1}"),
        (["data.without_modalities=[sound]"], "`data.without_modalities` is 'sound'; one of text_audio"),
        (["batch=3"], "no setting `batch`; the nearest is `batch."),
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


def test_every_number_of_a_recipe_has_a_range():
    def kinds(kind: type, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, hint in get_type_hints(kind).items():
            found |= kinds(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}
        return found

    numbers = {name for name, hint in kinds(Recipe).items() if {int, float} & {hint, *get_args(hint)}}
    ranges = {name for name, allowed in names_and_ranges(Recipe) if allowed}
    assert ranges == numbers - {"seed"}
    for name in ranges:
        is_list = get_origin(kinds(Recipe)[name]) is tuple
        with pytest.raises(ValueError, match=f"`{name}` is -1(.0)?, but must be"):
            load_recipe("stage1_align", {name: [1, -1] if is_list else -1})


def test_odd_recipe_files_are_read_or_refused_with_their_place(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: stage1_align.yaml\nbatch:\noptimizer:\n  # epochs: 2\n")
    assert load_recipe(path) == load_recipe("stage1_align")  # sections whose keys are all left out
    assert load_recipe(path, ["batch.per_device=3"]).batch.per_device == 3
    path.write_text("base: stage1_align.yaml\nbatch: 3\n")
    with pytest.raises(ValueError, match="mine.yaml: `batch` is a section with keys of its own, not 3"):
        load_recipe(path)
    with pytest.raises(ValueError, match="--set batch.per_device: the recipe has 3 for `batch`"):
        load_recipe(path, ["batch.per_device=3"])
    path.write_text("base: stage1_align.yaml\nseed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match=r"mine.yaml: .*`seed` comes twice.*line 3"):
        load_recipe(path)
    path.write_text("? [a, b]\n: 1\n")
    with pytest.raises(ValueError, match=r"mine.yaml: .*a key is a list or a mapping.*line 1"):
        load_recipe(path)
    path.write_bytes("seed: Größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="mine.yaml: not YAML"):
        load_recipe(path)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert load_recipe("stage1_align", ["optimizer.learning_rate=1e-3"]).optimizer.learning_rate == 1e-3


def test_a_recipe_survives_its_own_yaml():
    recipe = load_recipe("stage2_instruct", ["data.tasks=[ASR, PR]", "lora.rank=8"])
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert set(flat(recipe.to_dict())) == set(dict(names_and_ranges(Recipe)))
