"""What all rows of a micro-batch begin with is computed once, and the model learns the same."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_examples import examples, loss_and_gradients
from support.tiny_llaso import tiny_llaso
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.collator import Example, pad
from llaso.training.rows.shared_prefix import count_computed, is_worth_it, shared_prefix_of
from llaso.training.run.shared_forward import share_prefixes, within_window
from llaso.training.run.train import train
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

AUDIO = 256
"""A placeholder's id in rows of tokens alone."""


def sharing_model(attention: str, family: str = "llama") -> LlasoForConditionalGeneration:
    model, _ = tiny_llaso("trim", family)
    model.set_attn_implementation(attention)
    share_prefixes(model.model.language_model)
    return model.train()


def assert_shared_is_padded(model: LlasoForConditionalGeneration, made: Sequence[Example]) -> None:
    batch = pad(made, 0)
    prefix = shared_prefix_of([example.input_ids for example in made], model.config.audio_token_id)
    padded_loss, padded = loss_and_gradients(model, batch)
    shared_loss, shared = loss_and_gradients(model, batch | {"shared_prefix": prefix})
    torch.testing.assert_close(shared_loss, padded_loss, rtol=1e-5, atol=1e-5)
    assert shared.keys() == padded.keys() and shared
    for name, gradient in padded.items():
        largest = float(gradient.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(shared[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


@pytest.fixture(scope="module")
def models() -> dict[str, LlasoForConditionalGeneration]:
    return {name: sharing_model(name) for name in ("sdpa", "eager")}


rows_of_a_batch = st.lists(
    st.tuples(st.integers(3, 40), st.lists(st.integers(1, 90), max_size=2).map(tuple)), min_size=2, max_size=5
)


@settings(max_examples=12, deadline=None)
@given(rows=rows_of_a_batch, prefix=st.integers(0, 30), attention=st.sampled_from(["sdpa", "eager"]))
def test_rows_behind_a_shared_prefix_learn_the_same(models, rows, prefix, attention):
    assert_shared_is_padded(models[attention], examples(models[attention], rows, prefix=prefix))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_family_learns_the_same_behind_a_shared_prefix(family, attention):
    model = sharing_model(attention, family)
    assert_shared_is_padded(model, examples(model, ((20, (131,)), (7, ()), (12, (40, 77))), prefix=25))


def test_hidden_states_are_those_of_the_padded_batch(models):
    model = models["sdpa"].eval()
    made = examples(model, ((9, (60,)), (14, ())), prefix=11)
    batch = pad(made, 0)
    kept = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    prefix = shared_prefix_of([example.input_ids for example in made], model.config.audio_token_id)
    with torch.no_grad():
        padded = model(**kept, output_hidden_states=True)
        shared = model(**kept, output_hidden_states=True, shared_prefix=prefix)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(shared.hidden_states[-1][real], padded.hidden_states[-1][real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.logits[real], padded.logits[real], rtol=1e-4, atol=1e-4)


@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, AUDIO]), min_size=1, max_size=8), min_size=1, max_size=4),
    begin=st.lists(st.integers(1, 9), max_size=6),
)
def test_the_prefix_is_the_longest_without_audio_that_leaves_each_row_a_token(rows, begin):
    tokens = [begin + one for one in rows]
    found = shared_prefix_of([torch.tensor(one) for one in tokens], AUDIO)
    possible = [
        n
        for n in range(min(map(len, tokens)))
        if all(one[:n] == tokens[0][:n] and AUDIO not in one[:n] for one in tokens)
    ]
    assert found == {"tokens": max(possible), "row_lengths": list(map(len, tokens))}
    assert count_computed(found) == found["tokens"] + sum(len(one) - found["tokens"] for one in tokens)


def test_a_prefix_that_spares_little_is_left_as_it_is():
    assert is_worth_it({"tokens": 65, "row_lengths": [160] * 8})
    assert not is_worth_it({"tokens": 65, "row_lengths": [1600] * 16})
    assert not is_worth_it({"tokens": 0, "row_lengths": [160, 20, 20]})


def test_rows_longer_than_a_window_are_not_shared():
    model = sharing_model("sdpa", "mistral").model.language_model
    model.config.sliding_window = 16
    assert within_window(model, {"tokens": 5, "row_lengths": [16, 9]})
    assert not within_window(model, {"tokens": 5, "row_lengths": [17, 9]})
    model.config.sliding_window = None
    assert within_window(model, {"tokens": 5, "row_lengths": [17, 9]})


def test_models_that_take_no_mask_are_refused_by_name():
    model, _ = tiny_llaso("trim", "llama")
    model.config.text_config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="llama has layers of kind linear_attention"):
        share_prefixes(model.model.language_model)
    model, _ = tiny_llaso("trim", "llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(
        ValueError, match=r"does not go with attention 'flex_attention'; set compute\.attention to eager"
    ):
        share_prefixes(model.model.language_model)


# ---- Training ----


def test_a_run_with_a_shared_prefix_has_the_losses_of_one_without(tmp_path):
    save_backbones(tmp_path)
    save_corpus(tmp_path / "corpus", {"train": [row(number) for number in range(12)]})
    losses, flop = {}, {}
    for share in (False, True):
        train(tiny_recipe(tmp_path, f"run-{share}", train=["projector", "llm"], compute__share_prefix=share))
        steps = [json.loads(line) for line in (tmp_path / f"run-{share}" / "history.jsonl").read_text().splitlines()]
        steps = [step for step in steps if step["kind"] == "step"]
        losses[share], flop[share] = ([step[name] for step in steps] for name in ("loss", "flop"))
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert all(map(lambda shared, each: shared < each, flop[True], flop[False]))


def test_packed_batches_exclude_a_shared_prefix(tmp_path):
    with pytest.raises(ValueError, match=r"batch\.packing=false"):
        load_recipe(tiny_recipe(tmp_path, "run", compute__share_prefix=True, batch__packing=True))
    with pytest.raises(ValueError, match=r"`compute\.attention` flash_attention_2; set compute\.attention to eager"):
        load_recipe(tiny_recipe(tmp_path, "run", compute={"share_prefix": True, "attention": "flash_attention_2"}))
