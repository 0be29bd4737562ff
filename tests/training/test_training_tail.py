"""Training with a tail of silence behind each recording: planned lengths, the encoder's cache, checkpoints."""

from __future__ import annotations

import json

import pytest
from support.tiny_llaso import tiny_llaso, tiny_processor
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.encoder_cache import fingerprint
from llaso.training.rows.row_lengths import counting_rule
from llaso.training.run.model_setup import open_model
from llaso.training.run.train import train

TRIM, WITH_TAIL = (tiny_processor(audio_padding="trim", audio_tail=tail) for tail in (0.0, 0.5))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tail")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(number) for number in range(16)]})
    return folder


def test_a_run_with_a_tail_reads_it_from_its_cache_and_saves_it(root):
    """The cached and the uncached run have the same batches, and the checkpoint goes on with its own tail."""
    tokens = {}
    for name, gigabytes in (("live", 0.0), ("kept", 0.1)):
        train(tiny_recipe(root, name, model__audio_tail=0.5, compute__encoder_cache_gb=gigabytes))
        records = [json.loads(line) for line in (root / name / "history.jsonl").read_text().splitlines()]
        tokens[name] = [(one["tokens"], one["rows"]) for one in records if one["kind"] == "step"]
        saved = json.loads((root / name / "processor_config.json").read_text())
        assert saved["audio_tail"] == 0.5
    assert tokens["live"] == tokens["kept"]
    train(tiny_recipe(root, "none"))
    records = [json.loads(line) for line in (root / "none" / "history.jsonl").read_text().splitlines()]
    bare = [one["tokens"] for one in records if one["kind"] == "step"]
    # 0.5 s are 50 frames, so 25 vectors more for each of a step's eight rows
    assert [
        with_tail - without for (with_tail, _), without in zip(tokens["live"], bare, strict=True)
    ] == pytest.approx([8 * 25] * len(bare), abs=8)


def test_what_is_kept_with_a_tail_is_not_read_without():
    model, _ = tiny_llaso("trim")
    assert fingerprint(model, TRIM, "fp32") != fingerprint(model, WITH_TAIL, "fp32")
    assert counting_rule(TRIM) != counting_rule(WITH_TAIL)


def test_another_tail_than_the_checkpoints_is_warned_of(root, caplog):
    train(tiny_recipe(root, "trained", model__audio_tail=0.5))
    again = tiny_recipe(root, "again", model={"checkpoint": str(root / "trained")})
    assert open_model(load_recipe(again))[1].audio_tail == 0.5
    assert "audio_tail" not in caplog.text
    again["model"]["audio_tail"] = 0.0
    assert open_model(load_recipe(again))[1].audio_tail == 0.0
    assert "model.audio_tail is 0, but" in caplog.text and "was trained with 0.5" in caplog.text
    again["model"] = {"checkpoint": str(root / "trained"), "audio_padding": "full"}
    with pytest.raises(ValueError, match=r"model\.audio_tail is 0\.5, but with audio_padding='full'"):
        open_model(load_recipe(again))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__audio_tail": 31}, "`model.audio_tail` is 31.*, but must be between 0 and 30"),
        ({"model__audio_tail": float("inf")}, "`model.audio_tail` is inf, but must be between 0 and 30"),
        (
            {"model": {"encoder": "a", "llm": "b", "audio_padding": "full", "audio_tail": 1.0}},
            "set model.audio_tail=0",
        ),
    ],
)
def test_a_recipe_with_no_such_tail_is_refused_before_anything_is_loaded(root, settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(tiny_recipe(root, "refused", **settings))
